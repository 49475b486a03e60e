"""A collector of traces that takes all and keeps nothing: stands for one that has a machine of its own.

python -m benchmarks.collector PORT
"""

from __future__ import annotations

import sys

import grpc
import uvloop

SERVICE, METHOD = "opentelemetry.proto.collector.trace.v1.TraceService", "Export"


async def export(request: bytes, _: object) -> bytes:
    """An empty answer: all of it was taken. The request is not even read as a message."""
    return b""


async def main(port: int) -> None:
    server = grpc.aio.server()
    method = grpc.unary_unary_rpc_method_handler(export)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: method}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
