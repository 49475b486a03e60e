"""pytriton: Triton's server with its model in this process, reached through pytriton's proxy."""

import os

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

MAX_BATCH = int(os.environ["MAX_BATCH"])
MAX_IMAGES = int(os.environ["MAX_IMAGES"])
weights = np.fromfile(os.environ["WEIGHTS"], np.float32).reshape(4, 4)


@batch
def product(x):
    return {"y": x @ weights}


@batch
def corner(x):
    return {"y": np.ascontiguousarray(x[:, :1, :1, :4])}


def bind(triton, compute, row, answer, max_batch):
    triton.bind(
        model_name=compute.__name__,
        infer_func=compute,
        inputs=[Tensor(name="x", dtype=np.float32, shape=row)],
        outputs=[Tensor(name="y", dtype=np.float32, shape=answer)],
        config=ModelConfig(batching=True, max_batch_size=max_batch, batcher=DynamicBatcher()),
        strict=False,
    )


config = TritonConfig(
    http_address="127.0.0.1",
    http_port=int(os.environ["PORT"]),
    grpc_address="127.0.0.1",
    grpc_port=int(os.environ["GRPC_PORT"]),
    allow_metrics=False,
)
with Triton(config=config) as server:
    bind(server, product, (4,), (4,), MAX_BATCH)
    bind(server, corner, (3, 224, 224), (1, 1, 4), MAX_IMAGES)
    server.serve()
