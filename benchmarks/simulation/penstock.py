"""The system itself: production's policy, admission, prefetch rule and coalescing, in virtual time.

    arrive ─► Gateway: Admission.check, Policy.add … Policy.decide ─► hop ─► Broker ─► Replica: choose, join, run
                 ▲                                                                        │
                 └───────── Policy.finished ◄───────────── hop ◄──────────────────────────┘

The broker, half a hop from either side, hands messages in turn to replicas that have room for one, as RabbitMQ does,
whether they are busy or not.
"""

from __future__ import annotations

import random
from collections import deque
from itertools import count
from math import ceil
from typing import NamedTuple

from benchmarks.simulation.arrivals import Request, Trace
from benchmarks.simulation.central import feed
from benchmarks.simulation.clock import SECOND, Clock
from benchmarks.simulation.device import Device
from benchmarks.simulation.ledger import Ledger
from core.errors import PenstockError
from gateway.admission import Admission
from gateway.batching.batcher import message
from gateway.batching.entry import BatchKey, ColumnKey, Entry
from gateway.batching.estimate import Estimate
from gateway.batching.outlook import PER_REPLICA
from gateway.batching.policy import Formed, Policy
from workers.coalesce import choose, join, pick
from workers.messages import Batch, Timing
from workers.prefetch import Prefetch

KEY = BatchKey((ColumnKey("x", "FP32", (4,)),))
PIECES = [b""]


class Shape(NamedTuple):
    """`hop_s`: gateway to worker, and as long back. `window`: batches a replica, shared among the gateways."""

    gateways: int = 1
    replicas: int = 1
    hop_s: float = 0.0
    window: float = PER_REPLICA
    margin_s: float = 0.002
    bound: int = 2048

    @property
    def share(self) -> int:
        """One gateway's part of the batches that may be in flight."""
        return max(1, ceil(self.window * self.replicas / self.gateways))


EMBEDDED = Shape()
"""One process: the gateway and its model."""


class Asked(Entry):
    """A request as production's policy sees it."""

    __slots__ = ("request",)

    def __init__(self, request: Request, tenant: str, priority: int) -> None:
        super().__init__(KEY, request.rows, PIECES, request.at, request.due, tenant, priority)  # type: ignore[arg-type]
        self.request = request


class Delivery:
    """A batch on its way, and whose it is."""

    __slots__ = ("arrived", "batch", "formed", "home", "timing")

    def __init__(self, home: Gateway, formed: Formed, batch: Batch) -> None:
        self.home, self.formed, self.batch = home, formed, batch
        self.arrived = 0
        self.timing = Timing()


class System:
    """What all of its parts know."""

    def __init__(self, device: Device, shape: Shape, begin: int, end: int, seed: int) -> None:
        self.device, self.shape = device, shape
        self.clock = Clock()
        self.ledger = Ledger(begin, end)
        self.chance = random.Random(f"device {seed}")
        self.hop = int(shape.hop_s * SECOND)
        self.numbers = count(1)
        self.broker = Broker(self)

    def send(self, delivery: Delivery) -> None:
        self.clock.after(self.hop - self.hop // 2, self.broker.take, delivery)

    def tell(self, delivery: Delivery, ran: list[bool]) -> None:
        """Book the answers to a batch that has come back: `ran` is false for who had expired by then."""
        for entry, did in zip(delivery.formed.entries, ran, strict=True):
            assert isinstance(entry, Asked)
            if did:
                self.ledger.answered(entry.request, self.clock.now)
            else:
                self.ledger.late(entry.request)


class Gateway:
    """One process of the data plane: what `gateway/batching/batcher.py` does, without a loop."""

    punctual = True
    policy_class: type[Policy] = Policy
    admission_class: type[Admission] = Admission

    def __init__(self, system: System) -> None:
        device, shape = system.device, system.shape
        self.system = system
        self.policy = self.policy_class(device.max_batch, Estimate(device.max_batch, device.samples))
        self.policy.outlook.count(shape.replicas, shape.gateways)
        self.admission = self.admission_class(self.policy, shape.bound, int(shape.margin_s * SECOND))
        self._scheduled = False
        self._alarm = 0

    @property
    def window(self) -> int:
        return self.system.shape.share

    def tenant(self, request: Request) -> str:
        return request.tenant

    def arrive(self, request: Request) -> None:
        system = self.system
        ledger, now = system.ledger, system.clock.now
        ledger.sent(request)
        entry = Asked(request, self.tenant(request), request.priority)
        try:
            pushed = self.admission.check(entry, now)
        except PenstockError:
            ledger.refused(request)
            return
        if isinstance(pushed, Asked):
            ledger.refused(pushed.request)
        self.policy.add(entry)
        self._schedule()

    def _schedule(self) -> None:
        """At the end of this instant, as the batcher does at the end of the loop's iteration."""
        if not self._scheduled:
            self._scheduled = True
            self.system.clock.after(0, self._decide)

    def _decide(self) -> None:
        self._scheduled = False
        system, policy = self.system, self.policy
        now = system.clock.now
        while True:
            batch, expired, wake = policy.decide(
                now, self.window, system.shape.replicas, system.shape.gateways, self.punctual
            )
            for entry in expired:
                self.given_up(entry)
            if batch is None:
                break
            system.send(Delivery(self, batch, message(batch, next(system.numbers), policy.batched)))
        if wake and (self._alarm <= now or wake < self._alarm):
            self._alarm = wake
            system.clock.at(wake, self._schedule)

    def given_up(self, entry: Entry) -> None:
        assert isinstance(entry, Asked)
        self.system.ledger.late(entry.request)

    def answer(self, delivery: Delivery, ran: list[bool]) -> None:
        self.policy.finished(delivery.formed, self.system.clock.now, delivery.timing)
        self.system.tell(delivery, ran)
        self._schedule()


class Broker:
    def __init__(self, system: System) -> None:
        self._clock, self._hop = system.clock, system.hop // 2
        self._queue: deque[Delivery] = deque()
        self._replicas = deque(Replica(system, self) for _ in range(system.shape.replicas))

    def take(self, delivery: Delivery) -> None:
        self._queue.append(delivery)
        self.deliver()

    def deliver(self) -> None:
        replicas = self._replicas
        while self._queue:
            for _ in range(len(replicas)):
                replica = replicas[0]
                replicas.rotate(-1)
                if replica.has_room:
                    replica.held += 1
                    self._clock.after(self._hop, replica.take, self._queue.popleft())
                    break
            else:
                return

    def acknowledged(self, replica: Replica, messages: int) -> None:
        """Room for as many more at a replica."""
        replica.held -= messages
        self.deliver()


class Replica:
    """What `workers/feed.py` and `workers/worker.py` do: prefetch, coalesce, drop what has expired, run, reply."""

    def __init__(self, system: System, broker: Broker) -> None:
        self._system, self._broker = system, broker
        self._prefetch = Prefetch(system.device.max_batch)
        self._looked = 0
        self.held = 0
        """Messages that the broker has given it and not seen acknowledged."""
        self._queued: list[Delivery] = []
        self._busy = False

    @property
    def has_room(self) -> bool:
        return self.held < self._prefetch.count

    def take(self, delivery: Delivery) -> None:
        now = self._system.clock.now
        delivery.arrived = now
        self._prefetch.saw(delivery.batch.rows, 1)
        if now - self._looked >= SECOND:
            self._looked = now
            self._prefetch.decide(now)
        self._queued.append(delivery)
        if not self._busy:
            self._busy = True
            self._system.clock.after(0, self._run)

    def _run(self) -> None:
        queued, system = self._queued, self._system
        if not queued:
            self._busy = False
            return
        now = system.clock.now
        chosen = choose([delivery.batch for delivery in queued], system.device.max_batch)
        deliveries = [queued[at] for at in chosen]
        for at in reversed(chosen):
            del queued[at]
        alive = [[not 0 < m.deadline <= now for m in delivery.batch.members] for delivery in deliveries]
        parts = [_living(delivery.batch, ran) for delivery, ran in zip(deliveries, alive, strict=True)]
        parts = [part for part in parts if part.members]
        rows = join(parts).rows if parts else 0
        took = system.device.time(rows, system.chance) if rows else 0
        if rows:
            system.ledger.ran(rows)
        for delivery in deliveries:
            delivery.timing = Timing(now - delivery.arrived, 0, took, 0, rows, len(deliveries))
        system.clock.after(took, self._finish, deliveries, alive)

    def _finish(self, deliveries: list[Delivery], alive: list[list[bool]]) -> None:
        system = self._system
        for delivery, ran in zip(deliveries, alive, strict=True):
            system.clock.after(system.hop, delivery.home.answer, delivery, ran)
        system.clock.after(system.hop // 2, self._broker.acknowledged, self, len(deliveries))
        system.clock.after(0, self._run)


def _living(batch: Batch, alive: list[bool]) -> Batch:
    return batch if all(alive) else pick(batch, [at for at, lives in enumerate(alive) if lives])


class Spread:
    """Callers find a gateway by chance, each request anew."""

    def __init__(self, gateways: list[Gateway], seed: int) -> None:
        self._gateways, self._chance = gateways, random.Random(f"spread {seed}")

    def arrive(self, request: Request) -> None:
        self._chance.choice(self._gateways).arrive(request)


def simulate(trace: Trace, device: Device, shape: Shape = EMBEDDED, seed: int = 0, warm_s: float = 0.0,
             until_s: float = 1e9, gateway: type[Gateway] = Gateway) -> Ledger:  # fmt: skip
    """Run production's algorithm on a trace to the last answer; count those that arrive from `warm_s` to `until_s`."""
    system = System(device, shape, int(warm_s * SECOND), int(until_s * SECOND), seed)
    gateways = [gateway(system) for _ in range(shape.gateways)]
    feed(system.clock, trace, Spread(gateways, seed) if len(gateways) > 1 else gateways[0])
    system.clock.run()
    return system.ledger
