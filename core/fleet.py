"""Who is alive, from their beats. Pure: `now` is the listener's monotonic clock in nanoseconds."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from core.beats import READY, Beat, GatewayBeat, ReplicaBeat

SILENT_AFTER_NS = 3_000_000_000
"""Who was not heard for this long does not count."""
FORGOTTEN_AFTER_NS = 60_000_000_000

WINDOW_NS = 300_000_000_000
"""Differences of clocks are kept for one to two of these: two hosts' clocks drift apart by as much as 50 millionths
(15 ms in each), and the quickest way of so many beats is as good as any."""

B = TypeVar("B", bound=Beat)


class Heard(NamedTuple, Generic[B]):
    beat: B
    at: int


class Offset:
    """The smallest of the differences seen in this window and the one before: a delay only makes one larger."""

    __slots__ = ("_before", "_since", "_smallest")

    def __init__(self, difference: int, now: int) -> None:
        self._since = now
        self._smallest = self._before = difference

    def see(self, difference: int, now: int) -> None:
        windows = (now - self._since) // WINDOW_NS
        if windows > 0:
            self._since += windows * WINDOW_NS
            self._before = self._smallest if windows == 1 else difference
            self._smallest = difference
        self._smallest = min(self._smallest, difference)

    @property
    def ns(self) -> int:
        return min(self._smallest, self._before)


class Fleet:
    """Everything heard on the `beats` exchange."""

    def __init__(self) -> None:
        self._replicas: dict[str, Heard[ReplicaBeat]] = {}
        self._gateways: dict[str, Heard[GatewayBeat]] = {}
        self._offsets: dict[str, Offset] = {}

    def hear(self, beat: GatewayBeat | ReplicaBeat, now: int) -> None:
        if isinstance(beat, ReplicaBeat):
            self._replicas[beat.sender] = Heard(beat, now)
        else:
            self._gateways[beat.sender] = Heard(beat, now)
        difference = now - beat.sent
        self._offsets.setdefault(beat.sender, Offset(difference, now)).see(difference, now)

    def forget(self, now: int) -> None:
        """Drop who has been silent for long: call it now and then."""
        heard: dict[str, Heard[ReplicaBeat] | Heard[GatewayBeat]] = {**self._replicas, **self._gateways}
        for sender, (_, at) in heard.items():
            if now - at > FORGOTTEN_AFTER_NS:
                self._replicas.pop(sender, None)
                self._gateways.pop(sender, None)
                self._offsets.pop(sender, None)

    def dismiss(self, sender: str) -> None:
        """It said goodbye, or is known to be gone."""
        self._replicas.pop(sender, None)
        self._gateways.pop(sender, None)

    def replicas(self, now: int) -> list[ReplicaBeat]:
        """Every replica heard lately, whatever its state."""
        return [beat for beat, at in self._replicas.values() if now - at <= SILENT_AFTER_NS]

    def of(self, model: str, version: int, now: int) -> list[ReplicaBeat]:
        return [beat for beat in self.replicas(now) if beat.model == model and beat.version == version]

    def ready(self, model: str, version: int, now: int) -> list[ReplicaBeat]:
        """Replicas of a version that serve: one of these makes the model ready."""
        return [beat for beat in self.of(model, version, now) if beat.state == READY]

    def gateways(self, now: int) -> list[GatewayBeat]:
        return [beat for beat, at in self._gateways.values() if now - at <= SILENT_AFTER_NS]

    def followed(self, revision: int, now: int) -> bool:
        """Whether every gateway knows of that revision of the repository."""
        return all(beat.revision >= revision for beat in self.gateways(now))

    def served(self, model: str, version: int, revision: int, now: int) -> bool:
        """Whether every gateway knows of that revision of the repository, and sends requests to that version."""
        return all(
            beat.revision >= revision and any((s.model, s.version) == (model, version) for s in beat.open)
            for beat in self.gateways(now)
        )

    def offset(self, sender: str) -> int | None:
        """What to add to the sender's monotonic clock to have ours, too large by the quickest way here in the last
        minutes; None when it was never heard."""
        known = self._offsets.get(sender)
        return None if known is None else known.ns
