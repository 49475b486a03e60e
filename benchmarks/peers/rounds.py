"""The rounds: each starts every server, checks its answers, measures it beside the echo, and ends it again.

One server runs at a time, for an idle one would use the cores of the one that is measured. Each second round goes
through them the other way round, and measures the echo after the server instead of before it.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import httpx
import msgspec
import psutil

from benchmarks.load import GrpcTarget, HttpTarget, Load, load_grpc, load_http
from benchmarks.peers import asks, usage
from benchmarks.peers.asks import CORNER, PRODUCT, Ask
from benchmarks.peers.base import Peer, Served
from benchmarks.processes import echo
from benchmarks.rows import ratio

REST, GRPC, IMAGE, IMAGE_GRPC = "rest", "grpc", "image", "image-grpc"
FORMS = {
    REST: "the product over REST, JSON",
    GRPC: "the product over gRPC",
    IMAGE: "the image over REST",
    IMAGE_GRPC: "the image over gRPC",
}


class Plan(NamedTuple):
    """`callers`: of REST. gRPC takes the first, the middle and the last of them, the image the first one or two.

    `seconds`: of each measurement of a server. The echo beside it takes half, for it varies less; an image one more,
    for some servers take most of a second for one.
    """

    rounds: int = 3
    seconds: int = 2
    callers: tuple[int, ...] = (1, 8, 32, 128, 256)
    forms: tuple[str, ...] = tuple(FORMS)
    quick: bool = False

    def callers_of(self, form: str) -> tuple[int, ...]:
        some = {GRPC: (0, len(self.callers) // 2, -1), IMAGE: (0, 1), IMAGE_GRPC: (0,)}
        if form == REST:
            return self.callers
        return tuple(dict.fromkeys(self.callers[at] for at in some[form] if at < len(self.callers)))

    def seconds_of(self, form: str) -> int:
        return self.seconds + (form in (IMAGE, IMAGE_GRPC))


TRIES = 2
"""A server that could not be measured in so many rounds is left out of the others."""
QUICK = Plan(rounds=1, seconds=1, callers=(1, 32), quick=True)


class Seen(msgspec.Struct, kw_only=True):
    """One measurement. Times in milliseconds, CPU in microseconds a request, memory in MiB.

    `echoes`: the rate by the echo's beside it, 0 for an image, whose echo would send it back whole.
    """

    peer: str
    form: str
    callers: int
    number: int
    rate: float
    p50_ms: float
    p99_ms: float
    bad: int
    cpu_us: float
    rss_mib: float
    pss_mib: float
    echoes: float = 0.0


class Failure(msgspec.Struct, kw_only=True):
    """Why a form of a server is void; where `form` is '': why it could not be measured in a round."""

    peer: str
    why: str
    form: str = ""


@dataclass
class Measured:
    """What the rounds have given so far."""

    seen: list[Seen]
    failures: list[Failure]
    interrupted: bool = False


class Target(NamedTuple):
    """A form of one server that runs: how its answer is checked, and the loads on it and on its echo."""

    form: str
    check: Callable[[], None]
    load: Callable[[int, int], Load]
    bare: Callable[[int, int], Load] | None


Echoes = dict[str, int]
"""Ports of the echoes, by form."""
FAILURES = (AssertionError, OSError, RuntimeError, subprocess.SubprocessError, httpx.HTTPError, psutil.Error)
"""What may go wrong with a server, its environment or its load."""


def measure(peers: list[Peer], plan: Plan) -> Measured:
    """All rounds; what has been measured so far where it is interrupted."""
    measured = Measured([], [])
    try:
        with echo("benchmarks.echo") as rest, echo("benchmarks.grpc_echo") as grpc:
            for number in range(plan.rounds):
                for peer in peers if number % 2 == 0 else reversed(peers):
                    if sum(failed.peer == peer.name and not failed.form for failed in measured.failures) < TRIES:
                        begun = time.monotonic()
                        print(f"round {number + 1} of {plan.rounds}: {peer.title} … ", end="", flush=True)
                        _visit(peer, number, plan, {REST: rest.port, GRPC: grpc.port}, measured)
                        print(f"{time.monotonic() - begun:.0f} s", flush=True)
    except KeyboardInterrupt:
        measured.interrupted = True
    return measured


def _visit(peer: Peer, number: int, plan: Plan, echoes: Echoes, into: Measured) -> None:
    """One round of one server. A server that fails is told of, and does not end the others' round."""
    wanted = {PRODUCT: {REST, GRPC}, CORNER: {IMAGE, IMAGE_GRPC}}
    for which in peer.starts:
        if not any(wanted[model] & set(plan.forms) for model in which):
            continue
        try:
            with peer.serve(which) as served:
                for target in _targets(served, which, plan, echoes):
                    _measure(peer, target, served, number, plan, into)
        except FAILURES as error:
            into.failures.append(Failure(peer=peer.name, why=_sentence(error)))
            return


def _targets(served: Served, which: tuple[str, ...], plan: Plan, echoes: Echoes) -> Iterator[Target]:
    for model, (rest, grpc) in {PRODUCT: (REST, GRPC), CORNER: (IMAGE, IMAGE_GRPC)}.items():
        if model in which and rest in plan.forms:
            yield _rest(rest, model, served.rest[model], echoes)
        if model in which and grpc in plan.forms and model in served.grpc:
            yield _grpc(grpc, model, served.grpc[model], echoes)


def _rest(form: str, model: str, ask: Ask, echoes: Echoes) -> Target:
    bare = HttpTarget(f"http://127.0.0.1:{echoes[REST]}/v2/models/product/infer", ask.target.body, ask.target.headers)
    return Target(
        form,
        lambda: asks.check_http(ask, model),
        lambda callers, seconds: load_http(ask.target, callers, seconds),
        (lambda callers, seconds: load_http(bare, callers, seconds)) if form == REST else None,
    )


def _grpc(form: str, model: str, target: GrpcTarget, echoes: Echoes) -> Target:
    bare = target._replace(address=f"127.0.0.1:{echoes[GRPC]}")
    return Target(
        form,
        lambda: asks.check_grpc(target, model),
        lambda callers, seconds: load_grpc(target, callers, seconds),
        (lambda callers, seconds: load_grpc(bare, callers, seconds)) if form == GRPC else None,
    )


def _measure(peer: Peer, target: Target, served: Served, number: int, plan: Plan, into: Measured) -> None:
    """A form at each number of callers, with full batches warmed.

    Before each measurement the answer must be right; it comes behind whatever the last load left in a queue.
    """
    callers = plan.callers_of(target.form)
    try:
        target.check()
        if target.bare is not None:
            target.load(callers[-1], 1)
        for each in callers:
            target.check()
            into.seen.append(_seen(peer, target, served, each, number, plan))
    except asks.Wrong as wrong:
        into.failures.append(Failure(peer=peer.name, form=target.form, why=str(wrong)))


def _seen(peer: Peer, target: Target, served: Served, callers: int, number: int, plan: Plan) -> Seen:
    echo_first = number % 2 == 0
    bare = _echo(target, callers, plan) if echo_first else None
    before = usage.cpu_by_process(served.roots)
    load = target.load(callers, plan.seconds_of(target.form))
    used = usage.cpu_between(before, usage.cpu_by_process(served.roots))
    memory = usage.memory(served.roots)
    bare = bare if echo_first else _echo(target, callers, plan)
    return Seen(
        peer=peer.name,
        form=target.form,
        callers=callers,
        number=number,
        rate=load.rate,
        p50_ms=load.p50_ms,
        p99_ms=load.p99_ms,
        bad=load.bad + (bare.bad if bare else 0),
        cpu_us=1e6 * used / max(1, load.requests),
        rss_mib=memory.rss,
        pss_mib=memory.pss,
        echoes=ratio(load.rate, bare.rate) if bare else 0.0,
    )


def _echo(target: Target, callers: int, plan: Plan) -> Load | None:
    return target.bare(callers, max(1, plan.seconds // 2)) if target.bare else None


def _sentence(error: BaseException) -> str:
    """The first line of what an error says."""
    if isinstance(error, psutil.NoSuchProcess):
        return "its process ended while it was measured"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
