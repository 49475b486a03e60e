"""The limit of a compute-bound model: onnxruntime in a bare loop, nothing around it.

python -m benchmarks.bare_loop MODEL BATCH THREADS SECONDS   prints rows per second and milliseconds a batch
"""

from __future__ import annotations

import sys
import time

import numpy as np
import onnxruntime


def main(model: str, batch: int, threads: int, seconds: float) -> tuple[float, float]:
    """FP32[batch,64] under the name `x`, over and over."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {"x": np.ones((batch, 64), np.float32)}
    for _ in range(3):
        session.run(None, feed)
    begin, runs = time.perf_counter(), 0
    while time.perf_counter() < begin + seconds:
        session.run(None, feed)
        runs += 1
    spent = time.perf_counter() - begin
    return runs * batch / spent, spent / runs * 1e3


if __name__ == "__main__":
    print(*main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
