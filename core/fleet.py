"""Who is alive, from their beats. Pure: `now` is the listener's monotonic clock in nanoseconds."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from core.beats import READY, Beat, GatewayBeat, ReplicaBeat

SILENT_AFTER_NS = 3_000_000_000
"""Who was not heard for this long does not count."""
FORGOTTEN_AFTER_NS = 60_000_000_000

B = TypeVar("B", bound=Beat)


class Heard(NamedTuple, Generic[B]):
    beat: B
    at: int


class Fleet:
    """Everything heard on the `beats` exchange."""

    def __init__(self) -> None:
        self._replicas: dict[str, Heard[ReplicaBeat]] = {}
        self._gateways: dict[str, Heard[GatewayBeat]] = {}
        self._offsets: dict[str, int] = {}

    def hear(self, beat: GatewayBeat | ReplicaBeat, now: int) -> None:
        if isinstance(beat, ReplicaBeat):
            self._replicas[beat.sender] = Heard(beat, now)
        else:
            self._gateways[beat.sender] = Heard(beat, now)
        offset = now - beat.sent
        self._offsets[beat.sender] = min(offset, self._offsets.get(beat.sender, offset))

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

    def served(self, model: str, version: int, revision: int, now: int) -> bool:
        """Whether every gateway knows of that revision of the repository, and sends requests to that version."""
        return all(
            beat.revision >= revision and any((s.model, s.version) == (model, version) for s in beat.open)
            for beat in self.gateways(now)
        )

    def offset(self, sender: str) -> int | None:
        """What to add to the sender's monotonic clock to have ours, too large by the quickest way here; None when it
        was never heard."""
        return self._offsets.get(sender)
