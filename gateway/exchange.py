"""The one interface between transports and data plane: a request, and the two ways to answer it.

A transport (`http.py`, `rpc.py`, an ASGI route) makes an `Exchange` when a request is complete and hands it to
`DataPlane.infer`, which answers it exactly once, by `reply` or `fail`, now or later, always on the event loop's
thread. When the client leaves first, the transport calls `DataPlane.cancel(exchange)`, and nothing is answered.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

import msgspec

from core.datatypes import Buffer
from core.errors import PenstockError
from core.trace import NOBODY, Caller
from workers.messages import Output, Scalar

if TYPE_CHECKING:
    from core.identity import Principal
    from gateway.batching.entry import Entry
    from gateway.fit import Mould
    from gateway.routing import Route, Table
    from gateway.tracing import Trace

GRPC, REST = "grpc", "rest"
"""What a request came by."""


class InputTensor(msgspec.Struct, gc=False):
    """`shape` as sent, `data` the raw V2 bytes: of a fixed-size type exactly as many as the shape says."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Buffer


class RequestedOutput(msgspec.Struct, gc=False):
    """`binary`: as raw bytes behind the JSON (REST); None: as the request as a whole says. `classification`: top k."""

    name: str
    binary: bool | None = None
    classification: int = 0


class InferRequest(msgspec.Struct):
    """One decoded request, whatever the protocol. `parameters` are the caller's own, reserved ones taken out."""

    inputs: list[InputTensor]
    id: str = ""
    outputs: list[RequestedOutput] | None = None
    parameters: dict[str, Scalar] = {}
    priority: int = 0
    timeout_us: int = 0
    binary_output: bool = False


class InferResponse(msgspec.Struct):
    """`outputs` are those that were asked for, in that order; `request` says how each is to be rendered."""

    model: str
    version: str
    outputs: list[Output]
    request: InferRequest


class Pass:
    """Who asked and what served it, kept between requests that are alike in all that decides it.

    It holds while `stamp` is the verifier's and `table` the routes': a revoked key or a changed route ends it.
    """

    __slots__ = ("principal", "route", "stamp", "table")

    def __init__(self) -> None:
        self.stamp: object = None
        self.table: Table | None = None
        self.principal: Principal
        self.route: Route


class Exchange:
    """One request in flight. `version` is '' where the caller named none; an alias or digits otherwise.

    `received` (as a whole) and `deadline` are monotonic nanoseconds of this host; a deadline of 0 means that the
    transport knows of none (the request's own `timeout` and the model's default are the data plane's business).
    `caller`: what the request says of itself. `trace_id` is its own whether or not it is traced: every answer names it.
    """

    __slots__ = (
        "allowed",
        "caller",
        "credential",
        "deadline",
        "entry",
        "model",
        "received",
        "trace",
        "trace_id",
        "version",
    )

    transport: ClassVar[str] = REST

    def __init__(
        self, model: str, version: str, credential: bytes | None, deadline: int = 0, caller: Caller = NOBODY
    ) -> None:
        self.model = model
        self.version = version
        self.credential = credential
        self.received = time.monotonic_ns()
        self.deadline = deadline
        self.caller = caller
        self.trace_id = caller.new_trace()
        self.trace: Trace | None = None
        """Set where the request is sampled, until it has been told of."""
        self.allowed: Pass | None = None
        """Of a transport that knows requests to be alike: the data plane fills it and goes by it."""
        self.entry: Entry | None = None
        """Set by the data plane while the request waits: what `cancel` takes out of its batch."""

    def decode(self, mould: Mould) -> InferRequest:
        """The request's content, as a model of that mould may read it.

        Raises InvalidRequest, TooLarge, UnsupportedMedia or Unsupported.
        """
        raise NotImplementedError

    def reply(self, response: InferResponse) -> None:
        """Answer. An output that the protocol cannot carry becomes an error that says what to ask for instead."""
        raise NotImplementedError

    def fail(self, error: PenstockError) -> None:
        raise NotImplementedError
