"""Python classes that the tests from outside push, and their signatures."""

from __future__ import annotations

from typing import Any

PYTHON = '''\
"""Classes that the tests push."""

import json
import os
import time

import numpy as np


class Parameters:
    """Answers with its request's own parameters, as JSON."""

    def predict(self, inputs, parameters):
        text = json.dumps(parameters, sort_keys=True).encode()
        return {"told": np.array([[text]] * len(inputs["x"]), dtype=object)}


class Passthrough:
    """BYTES arrive as objects of bytes, BF16 as bfloat16; what arrived is told by name."""

    def load(self):
        self.loaded = True

    def predict(self, inputs):
        assert self.loaded and all(isinstance(each, bytes) for each in inputs["text"].reshape(-1))
        assert inputs["half"].dtype.name == "bfloat16", inputs["half"].dtype
        return {"text": inputs["text"], "half": inputs["half"]}


class Fragile:
    """x = 0: answers with its process id; 1: raises; 2: says a word, then takes for ever."""

    def predict(self, inputs):
        order = int(inputs["x"].max())
        if order == 1:
            raise RuntimeError("the secret is in /etc/passwd")
        while order == 2:
            time.sleep(0.05)
        return {"pid": np.full((len(inputs["x"]), 1), os.getpid(), np.int64)}


class Unloadable:
    def load(self):
        raise ValueError("no weights here")

    def predict(self, inputs):
        return inputs
'''
"""A file of classes to push with --allow-code."""


def spec(name: str, datatype: str, *shape: int) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(shape)}


SIGNATURES: dict[str, dict[str, Any]] = {
    "Parameters": {"inputs": [spec("x", "FP32", -1, 1)], "outputs": [spec("told", "BYTES", -1, 1)]},
    "Passthrough": {
        "inputs": [spec("text", "BYTES", -1, 2), spec("half", "BF16", -1, 2)],
        "outputs": [spec("text", "BYTES", -1, 2), spec("half", "BF16", -1, 2)],
    },
    "Fragile": {"inputs": [spec("x", "INT32", -1, 1)], "outputs": [spec("pid", "INT64", -1, 1)]},
    "Unloadable": {"inputs": [spec("x", "FP32", -1, 1)], "outputs": [spec("x", "FP32", -1, 1)]},
}
