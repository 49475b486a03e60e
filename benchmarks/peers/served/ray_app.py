"""Ray Serve behind its own ingress: two applications of one replica each; {"x": a row} → {"y": a row}."""

import os
import signal

import numpy as np
import ray
from ray import serve

MAX_BATCH = int(os.environ["MAX_BATCH"])
MAX_IMAGES = int(os.environ["MAX_IMAGES"])
WAIT_S = float(os.environ["BATCH_WAIT_S"])
ONGOING = int(os.environ["MAX_ONGOING"])


@serve.deployment(num_replicas=1, max_ongoing_requests=ONGOING)
class Product:
    def __init__(self):
        self.weights = np.fromfile(os.environ["WEIGHTS"], np.float32).reshape(4, 4)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=WAIT_S)
    async def compute(self, rows):
        return (np.array(rows, np.float32) @ self.weights).tolist()

    async def __call__(self, request):
        return {"y": await self.compute((await request.json())["x"])}


@serve.deployment(num_replicas=1, max_ongoing_requests=ONGOING)
class Corner:
    @serve.batch(max_batch_size=MAX_IMAGES, batch_wait_timeout_s=WAIT_S)
    async def compute(self, images):
        return np.array(images, np.float32)[:, :1, :1, :4].tolist()

    async def __call__(self, request):
        return {"y": await self.compute((await request.json())["x"])}


if __name__ == "__main__":
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=os.environ["RAY_FOLDER"]
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
    serve.run(Product.bind(), name="product", route_prefix="/product")
    serve.run(Corner.bind(), name="corner", route_prefix="/corner")
    try:
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
    finally:
        ray.shutdown()
