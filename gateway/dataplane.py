"""The one place that spells a request's life: verify → route → decode → fit → admit → batch → send → answer.

Transports hand over an `Exchange`; it is answered exactly once, by `reply` or `fail`, or not at all once its client
has gone (`cancel`). Nothing here awaits: admission is a plain call, and the batcher answers by plain calls later.
"""

from __future__ import annotations

import time

import structlog

from core.errors import DeadlineExceeded, Internal, InvalidRequest, PenstockError, new_error_id
from core.identity import PREDICT, Principal, Verifier
from core.names import VERSION
from core.settings import Settings
from gateway.batching.entry import Entry
from gateway.codec.classification import classify
from gateway.exchange import Exchange, InferRequest, InferResponse
from gateway.routes import Routes
from gateway.routing import Route
from workers.messages import Output, Timing

log = structlog.get_logger()

SLACK_NS = 2_000_000
"""A transport that knows its caller's deadline may end a request itself when it passes, a little before us."""


class Call(Entry):
    """An exchange while it waits for, or rides in, a batch."""

    __slots__ = ("exchange", "request", "route")

    exchange: Exchange
    request: InferRequest
    route: Route

    def answer(self, outputs: list[Output], timing: Timing, waited: int) -> None:
        """Pick what was asked for, and reply; an output that cannot be rendered becomes the caller's error."""
        exchange = self.exchange
        exchange.entry = None
        try:
            if self.request.outputs is not None:
                outputs = self._requested(outputs)
            exchange.reply(InferResponse(self.route.name, self.route.number, outputs, self.request))
        except PenstockError as error:
            self._spoil(error)
        except Exception as error:
            self._spoil(internal(error))
        if exchange.trace is not None:
            exchange.trace.ended = time.monotonic_ns()

    def _spoil(self, error: PenstockError) -> None:
        self.state = Entry.SPOILED
        self.refuse(error)

    def refuse(self, error: PenstockError) -> None:
        exchange = self.exchange
        exchange.entry = None
        exchange.fail(error)
        self.route.recorder.unanswered(exchange, self.route, self, error)

    def _requested(self, outputs: list[Output]) -> list[Output]:
        by_name = {output.name: output for output in outputs}
        chosen = []
        for wanted in self.request.outputs or ():
            output = by_name[wanted.name]
            if wanted.classification:
                labels = self.route.labels[wanted.name]
                output = classify(output, wanted.classification, labels, self.route.batched)
            chosen.append(output)
        return chosen


class Moved(Call):
    """A request on its second way, to what stood for its name when nobody served its first version any more."""

    __slots__ = ()


class DataPlane:
    """What every transport hands its requests to. Lives on one event loop; not thread-safe."""

    def __init__(self, verifier: Verifier, routes: Routes, settings: Settings) -> None:
        self._verifier = verifier
        self._routes = routes
        self._recorder = routes.recorder
        self._longest = settings.max_deadline_ms * 1_000_000
        routes.elsewhere = self.reroute

    def infer(self, exchange: Exchange) -> None:
        """Take a request to its batch, or answer it with the reason why not. Never raises."""
        route, owner = None, ""
        try:
            principal, route = self.route(exchange)
            owner = principal.owner
            trace = route.recorder.begin(exchange)
            request = exchange.decode(route.mould)
            key, rows, pieces = route.mould.press(request)
            deadline = self._deadline(exchange, request, route)
            call = Call(key, rows, pieces, exchange.received, deadline, owner, request.priority)
            call.exchange = exchange
            call.request = request
            call.route = route
            call.trace = trace
            exchange.entry = call
            route.batcher.submit(call)
        except PenstockError as error:
            self._refuse(exchange, route, error, owner)
        except Exception as error:
            self._refuse(exchange, route, internal(error), owner)

    def reroute(self, entry: Entry) -> bool:
        """Nobody serves the version that a request was sent to any more, and nobody has begun with it: take it, once,
        to what its model or alias stands for now, or answer it with the reason why not. Its deadline stays.

        False where the name still stands for that version, by number or by the table: then it is not served.
        """
        if type(entry) is not Call or VERSION.match(entry.exchange.version):
            return False
        exchange, route = entry.exchange, entry.route
        try:
            _, now = self.route(exchange)
            if now is route:
                return False
            route = now
            key, rows, pieces = route.mould.press(entry.request)
            call = Moved(key, rows, pieces, entry.arrived, entry.deadline, entry.tenant, entry.priority)
            call.exchange, call.request, call.route, call.trace = exchange, entry.request, route, entry.trace
            exchange.entry = call
            route.batcher.submit(call)
        except PenstockError as error:
            self._refuse(exchange, route, error)
        except Exception as error:
            self._refuse(exchange, route, internal(error))
        return True

    def refused(self, exchange: Exchange, error: PenstockError) -> None:
        """A transport has refused a request by itself, before it was whole: it is counted, and told of."""
        self._recorder.unrouted(exchange, error)

    def unread(self, error: PenstockError) -> None:
        """A transport has refused a request whose head it could not or would not read: it is counted."""
        self._recorder.unread(error)

    def _refuse(self, exchange: Exchange, route: Route | None, error: PenstockError, owner: str = "") -> None:
        entry, exchange.entry = exchange.entry, None
        exchange.fail(error)
        if route is None:
            self._recorder.unrouted(exchange, error, owner)
        else:
            route.recorder.unanswered(exchange, route, entry, error, owner)

    def route(self, exchange: Exchange) -> tuple[Principal, Route]:
        """Who asks, and what would serve it: all that headers can tell. Raises PenstockError."""
        verifier, table, allowed = self._verifier, self._routes.table, exchange.allowed
        if allowed is not None and allowed.stamp is verifier.stamp and allowed.table is table:
            return allowed.principal, allowed.route
        principal = verifier.verify(exchange.credential)
        principal.require(PREDICT)
        route = table.resolve(exchange.model, exchange.version, principal)
        if allowed is not None and verifier.lasting(principal):
            allowed.stamp, allowed.table, allowed.principal, allowed.route = verifier.stamp, table, principal, route
        return principal, route

    def cancel(self, exchange: Exchange) -> None:
        """The client has gone: its request leaves its batch, and is not answered."""
        entry = exchange.entry
        if entry is not None:
            exchange.entry = None
            route: Route = entry.route  # type: ignore[attr-defined]
            route.batcher.cancel(entry)
            if exchange.deadline and time.monotonic_ns() >= exchange.deadline - SLACK_NS:
                late = DeadlineExceeded("the deadline passed before an answer")
                route.recorder.unanswered(exchange, route, entry, late)
            else:
                route.recorder.cancelled(exchange, route, entry)

    def _deadline(self, exchange: Exchange, request: InferRequest, route: Route) -> int:
        """Monotonic ns: the request's own timeout, else the model's default, and never after the transport's."""
        budget = request.timeout_us * 1000 or route.budget
        deadline = exchange.received + (budget if budget < self._longest else self._longest)
        return min(deadline, exchange.deadline) if exchange.deadline else deadline


def internal(error: BaseException) -> PenstockError:
    """A defect of ours, as the caller may see it; the log has the rest under the same id."""
    if isinstance(error, RecursionError):
        return InvalidRequest("the request is nested too deeply")
    failure = Internal("internal error; the log has the details", error_id=new_error_id())
    log.error("internal error", error_id=failure.error_id, exc_info=error)
    return failure
