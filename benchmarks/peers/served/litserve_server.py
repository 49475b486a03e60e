"""LitServe: two APIs of one server, a worker process each; requests {"x": a row}, answers {"y": a row}."""

import os

import litserve
import numpy as np


class Product(litserve.LitAPI):
    def setup(self, device):
        self.weights = np.fromfile(os.environ["WEIGHTS"], np.float32).reshape(4, 4)

    def decode_request(self, request):
        return np.array(request["x"], np.float32)

    def batch(self, inputs):
        return np.stack(inputs)

    def predict(self, x):
        return x @ self.weights

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        return {"y": output.tolist()}


class Corner(Product):
    def predict(self, x):
        return x[:, :1, :1, :4]


MODELS = {"product": (Product, int(os.environ["MAX_BATCH"])), "corner": (Corner, int(os.environ["MAX_IMAGES"]))}


def api(name):
    kind, max_batch = MODELS[name]
    return kind(max_batch_size=max_batch, batch_timeout=float(os.environ["BATCH_TIMEOUT"]), api_path=f"/{name}")


if __name__ == "__main__":
    apis = [api(name) for name in os.environ["MODELS"].split(",")]
    server = litserve.LitServer(
        apis, accelerator="cpu", devices=1, workers_per_device=1, fast_queue=True, timeout=False
    )
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
    )
