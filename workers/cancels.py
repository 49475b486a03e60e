"""Whose callers have gone, by the name that their gateway gave the batch. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import msgspec

from workers.delivery import Delivery

Name = tuple[str, int]
"""Gateway instance, batch id there."""
REMEMBERED = 1024
"""Cancellations of batches that have not come (yet, or here) that are kept."""

_decoder = msgspec.msgpack.Decoder(list[tuple[str, int, list[int]]])


class Cancels:
    def __init__(self) -> None:
        self._here: dict[Name, list[Delivery]] = {}
        self._early: OrderedDict[Name, Sequence[int]] = OrderedDict()

    def enter(self, delivery: Delivery) -> list[int]:
        """A batch came; which of its members (by index here) have gone already."""
        name = (delivery.gateway, delivery.home)
        self._here.setdefault(name, []).append(delivery)
        return _indexes(delivery, self._early.pop(name, ()))

    def __iter__(self) -> Iterator[Delivery]:
        """Every batch that is here."""
        return (delivery for here in self._here.values() for delivery in here)

    def leave(self, delivery: Delivery) -> None:
        """It has been answered."""
        name = (delivery.gateway, delivery.home)
        here = self._here[name]
        here.remove(delivery)
        if not here:
            del self._here[name]

    def hear(self, body: bytes) -> list[tuple[Delivery, list[int]]]:
        """A message of cancellations → the batches here and their members that have gone. Raises ValueError."""
        found = []
        for gateway, home, members in _decoder.decode(body):
            here = self._here.get((gateway, home))
            if here is None:
                self._remember((gateway, home), members)
            else:
                found += [(delivery, _indexes(delivery, members)) for delivery in here]
        return found

    def _remember(self, name: Name, members: Sequence[int]) -> None:
        self._early[name] = members
        if len(self._early) > REMEMBERED:
            self._early.popitem(last=False)


def _indexes(delivery: Delivery, members: Sequence[int]) -> list[int]:
    if delivery.attempt:
        return [0] if delivery.member in members else []
    return [at for at in members if 0 <= at < len(delivery.batch.members)]
