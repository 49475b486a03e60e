"""How many replicas a version needs. Pure: loads and the time go in, a number comes out.

A replica that batches is busy nearly all the time long before it is at its limit, so the busy share alone says little.
What counts is the work that is asked for: rows a second × the seconds that a row takes in the best batch, which is
what a replica does where it has to; 0.7 of a replica's time is planned with. Where requests wait for long all the same
and the replicas are busy, that estimate is too low: then there is one more.

    up      when it was needed for two seconds in a row (two beats); not by waiting alone while replicas still start
    down    by one, when fewer would have done for a minute, with half of a replica's time planned with; then a minute
            passes before the next

Between the two lies the hysteresis: what was added at a load is not taken away at that load.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from core.beats import READY, GatewayBeat, ReplicaBeat
from repository.catalog import Place
from repository.records import Deployment

FULL, HALF = 0.7, 0.5
"""Shares of a replica's time: planned with when replicas are added, and when one is taken away."""
LATE_S = 0.25
BUSY = 0.8
UP_AFTER_S = 2.0
DOWN_AFTER_S = 60.0


class Load(NamedTuple):
    """Of one version, over the last second. `work`: replicas' worth of it, at their best. `late`: seconds that the
    oldest request waits at a gateway, or a batch at a replica. `busy`: the mean share of the ready replicas."""

    work: float = 0.0
    late: float = 0.0
    busy: float = 0.0
    ready: int = 0

    def needs(self, share: float) -> int:
        """Replicas for the work, each with `share` of its time."""
        return max(1, math.ceil(self.work / share - 1e-9))

    def behind(self) -> bool:
        return self.late > LATE_S and self.busy > BUSY


def load_of(place: Place, replicas: Sequence[ReplicaBeat], gateways: Sequence[GatewayBeat]) -> Load:
    ready = [beat for beat in replicas if beat.state == READY]
    shares = [share for gateway in gateways for share in gateway.open if (share.model, share.version) == place]
    if not ready:
        return Load()
    busy = sum(beat.busy for beat in ready) / len(ready)
    oldest = max((share.oldest for share in shares), default=0)
    late = max(oldest, max(beat.queue_wait for beat in ready)) / 1e9
    cost = min((seconds / rows for beat in ready for rows, seconds in beat.warmup if rows), default=0.0)
    demand = sum(share.demand for share in shares)
    return Load(demand * cost if cost else busy * len(ready), late, busy, len(ready))


class _Memory(NamedTuple):
    """`wanting`: since when more are needed; `plenty`: since when fewer would have done. None: they are not."""

    wanting: float | None = None
    plenty: float | None = None


class Scaler:
    def __init__(self) -> None:
        self._memories: dict[Place, _Memory] = {}

    def replicas(self, place: Place, deployment: Deployment, running: int, load: Load, now: float) -> int:
        """How many there should be, where `running` were asked for last (0: none yet). `now`: monotonic seconds."""
        least, most = deployment.replicas, deployment.max_replicas
        kept = min(max(running, least), most)
        needed = load.needs(FULL)
        if load.behind() and load.ready >= running:
            needed = max(needed, running + 1)
        memory = self._memories.get(place, _Memory())
        wanting = _since(memory.wanting, needed > kept, now)
        plenty = _since(memory.plenty, load.needs(HALF) < kept and not load.behind(), now)
        if wanting is not None and now - wanting >= UP_AFTER_S:
            kept, wanting = min(needed, most), None
        elif plenty is not None and now - plenty >= DOWN_AFTER_S and kept > least:
            kept, plenty = kept - 1, None
        self._memories[place] = _Memory(wanting, plenty)
        return kept

    def forget(self, places: Mapping[Place, object]) -> None:
        """Keep only what is known of `places`."""
        self._memories = {place: memory for place, memory in self._memories.items() if place in places}


def _since(before: float | None, holds: bool, now: float) -> float | None:
    """Since when it has held without a break."""
    return None if not holds else now if before is None else before
