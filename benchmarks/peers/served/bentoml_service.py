"""BentoML: a service of one worker with two batchable APIs; requests {"x": rows}, answers rows."""

import os

import bentoml
import numpy as np

MAX_BATCH = int(os.environ["MAX_BATCH"])
MAX_IMAGES = int(os.environ["MAX_IMAGES"])


@bentoml.service(workers=1, traffic={"timeout": 60}, logging={"access": {"enabled": False}})
class Peer:
    def __init__(self) -> None:
        self.weights = np.fromfile(os.environ["WEIGHTS"], np.float32).reshape(4, 4)

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH)
    def product(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(x, np.float32) @ self.weights

    @bentoml.api(batchable=True, max_batch_size=MAX_IMAGES)
    def corner(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(x, np.float32)[:, :1, :1, :4]
