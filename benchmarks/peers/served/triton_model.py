"""Triton's Python backend: the product of a whole batch, or the first four numbers of each image."""

import os

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        weights = np.fromfile(os.environ["WEIGHTS"], np.float32).reshape(4, 4)
        self.compute = {"product": lambda x: x @ weights, "corner": lambda x: x[:, :1, :1, :4]}[args["model_name"]]

    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        rows = self.compute(np.concatenate(inputs))
        ends = np.cumsum([len(x) for x in inputs])[:-1]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", part)]) for part in np.split(rows, ends)]
