"""What is done to a server in its production shape while it is under load."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import penstock

from loadtests.processes import Server
from loadtests.shapes import KILL, UPDATE, WARM_S, Scenario

MODEL = "digits"
SETTLED_WITHIN_S = 120.0


def push_again(server: Server) -> None:
    """The same artifact as the model's next version, and wait until it serves: a rolling update."""
    with _client(server) as ps:
        ps.push(server.home / "samples" / f"{MODEL}.onnx", MODEL, max_batch=64, wait=SETTLED_WITHIN_S)


def have_two_replicas(server: Server) -> None:
    """So that one is left when the other is killed."""
    with _client(server) as ps:
        ps.deploy(MODEL, replicas=2, max_replicas=2)
        _wait(lambda: len(replicas(ps)) == 2, "the second replica did not come")


def kill_replica(server: Server) -> None:
    """End one replica of the model without notice, and wait until there are as many as before."""
    with _client(server) as ps:
        before = replicas(ps)
        os.kill(before[0], signal.SIGKILL)
        _wait(lambda: len(set(replicas(ps)) - {before[0]}) == len(before), "the killed replica was not replaced")


def replicas(ps: penstock.Client) -> list[int]:
    """Process ids of the model's replicas that serve."""
    models = {model["name"]: model for model in ps.status()["models"]}
    versions = models[MODEL]["versions"] if MODEL in models else []
    return [one["pid"] for version in versions for one in version["where"] if one["state"] == "READY"]


PREPARATIONS: dict[str, Callable[[Server], None]] = {KILL: have_two_replicas}
DISTURBANCES: dict[str, Callable[[Server], None]] = {UPDATE: push_again, KILL: kill_replica}


@contextlib.contextmanager
def meanwhile(scenario: Scenario, server: Server) -> Iterator[None]:
    """The scenario's disturbance, prepared now, at its time on a thread; over when it is. Raises RuntimeError where it
    failed."""
    failed: list[Exception] = []

    def act() -> None:
        time.sleep(WARM_S + scenario.seconds * scenario.disturbed_at)
        try:
            DISTURBANCES[scenario.disturbance](server)
        except Exception as error:
            failed.append(error)

    if scenario.disturbance in PREPARATIONS:
        PREPARATIONS[scenario.disturbance](server)
    thread = threading.Thread(target=act, daemon=True) if scenario.disturbance else None
    if thread is not None:
        thread.start()
    yield
    if thread is not None:
        thread.join(SETTLED_WITHIN_S + scenario.seconds)
    if failed:
        raise RuntimeError(f"{scenario.disturbance}: {failed[0]}") from failed[0]


def _wait(condition: Callable[[], bool], why_not: str) -> None:
    deadline = time.monotonic() + SETTLED_WITHIN_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{why_not} within {SETTLED_WITHIN_S:g} s")
        time.sleep(0.5)


def _client(server: Server) -> penstock.Client:
    return penstock.connect(server.url, api_key=server.admin, control=server.control)
