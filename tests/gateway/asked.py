"""A request as a transport hands it over, of one row of four for the model `echo`, that keeps what it is told."""

from __future__ import annotations

import time

from core.errors import PenstockError
from core.trace import NOBODY, Caller
from gateway.exchange import Exchange, InferRequest, InferResponse, InputTensor
from gateway.fit import Mould


class Asked(Exchange):
    """`told`: the version that answered it, or the error."""

    __slots__ = ("told",)

    def __init__(
        self, key: str = "", named: str = "", within_s: float = 30.0, model: str = "echo", caller: Caller = NOBODY
    ) -> None:
        super().__init__(model, named, key.encode(), time.monotonic_ns() + round(within_s * 1e9), caller)
        self.told: list[str | PenstockError] = []

    def decode(self, mould: Mould) -> InferRequest:
        return InferRequest([InputTensor("x", "FP32", (1, 4), bytes(16))])

    def reply(self, response: InferResponse) -> None:
        self.told.append(response.version)

    def fail(self, error: PenstockError) -> None:
        self.told.append(error)
