"""The unit of the gRPC ratios: a bare grpc.aio server with the V2 proto, one generic handler, no work.

python -m benchmarks.grpc_echo PORT
"""

from __future__ import annotations

import sys

import grpc
import uvloop
from tritonclient.grpc import service_pb2 as pb


async def infer(request: pb.ModelInferRequest, _: object) -> pb.ModelInferResponse:
    """The request's tensors back under the same names."""
    outputs = [
        pb.ModelInferResponse.InferOutputTensor(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        for tensor in request.inputs
    ]
    return pb.ModelInferResponse(
        model_name=request.model_name, outputs=outputs, raw_output_contents=request.raw_input_contents
    )


async def main(port: int) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    method = grpc.unary_unary_rpc_method_handler(
        infer, pb.ModelInferRequest.FromString, pb.ModelInferResponse.SerializeToString
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ModelInfer": method}),)
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
