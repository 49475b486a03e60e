"""Locust's users: REST with JSON or binary tensors, and gRPC. Imported by Locust's own process only: it patches Python.

Each sends one request, of its own tenant, and waits out the rest of its pace; what it sees goes to the recorder, and to
Locust's statistics.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import gevent.lock
import grpc
import grpc.experimental.gevent
from locust import FastHttpUser, User, constant_pacing, task

from loadtests import payloads
from loadtests.closed_loop import Aim
from loadtests.seen import Outcome

grpc.experimental.gevent.init_gevent()

PACE_S = 0.05
PATIENCE_S = 10.0
Record = Callable[[float, float, Outcome], None]
"""Told of each request: when it was sent (perf_counter), its seconds, its outcome."""


class RestUser(FastHttpUser):
    """`rest-json` and `rest-binary`."""

    abstract = True
    aim: Aim
    record: Record
    tenants: Any
    wait_time = constant_pacing(PACE_S)
    connection_timeout = network_timeout = PATIENCE_S
    max_retries = 0

    def on_start(self) -> None:
        body, headers = payloads.rest(self.aim.model, self.aim.transport)
        self._body: Any = body  # Locust says str, and sends bytes as they are
        self._headers = headers | dict([payloads.credential(next(self.tenants))])

    @task
    def infer(self) -> None:
        path = payloads.path(self.aim.model)
        begun = time.perf_counter()
        answer = self.client.post(path, data=self._body, headers=self._headers, name=self.aim.name)
        self.record(begun, time.perf_counter() - begun, _outcome(answer.status_code))


def _outcome(status: int | None) -> Outcome:
    if status is not None and 200 <= status < 300:
        return Outcome.OK
    return Outcome.LATE if status == 504 else Outcome.ERROR


class GrpcUser(User):
    """Users of one aim share a channel, as threads of one client process do."""

    abstract = True
    aim: Aim
    record: Record
    tenants: Any
    wait_time = constant_pacing(PACE_S)
    channel: Any = None
    _opening = gevent.lock.BoundedSemaphore()

    def on_start(self) -> None:
        with self._opening:
            if type(self).channel is None:
                type(self).channel = grpc.insecure_channel(self.aim.address)
        self._infer = self.channel.unary_unary(payloads.METHOD)
        self._request = payloads.rpc(self.aim.model)
        self._metadata = (payloads.credential(next(self.tenants)),)

    @task
    def infer(self) -> None:
        begun = time.perf_counter()
        outcome, error, answer = Outcome.OK, None, b""
        try:
            answer = self._infer(self._request, metadata=self._metadata, timeout=PATIENCE_S)
        except grpc.RpcError as failed:
            error = failed
            expired = failed.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            outcome = Outcome.LATE if expired else Outcome.ERROR
        seconds = time.perf_counter() - begun
        self.record(begun, seconds, outcome)
        self.environment.events.request.fire(
            request_type="gRPC",
            name=self.aim.name,
            response_time=1e3 * seconds,
            response_length=len(answer),
            exception=error,
            context={},
        )


def user_class(aim: Aim, record: Record) -> type[User]:
    """A class of users for this aim, `aim.users` of them when all are there."""
    base: type[User] = GrpcUser if aim.transport == "grpc" else RestUser
    members = {
        "aim": aim,
        "host": aim.address,
        "weight": aim.users,
        "record": staticmethod(record),
        "tenants": itertools.cycle(aim.keys),
    }
    return type("".join(part.title() for part in aim.name.replace("-", " ").split()), (base,), members)
