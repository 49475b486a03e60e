"""Whose callers have gone, by the name that their gateway gave the batch. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from workers.delivery import Delivery

Name = tuple[str, int]
"""Gateway instance, batch id there."""
REMEMBERED = 1024
"""Cancellations of batches that have not come (yet, or here) that are kept."""
MOST_MEMBERS = 1 << 16
"""Of those together, and of one batch: a version batches no more rows."""
MOST_ENTRIES = 1 << 14
"""Batches that one message names: those that a gateway has in flight are a few for each replica."""

_Entry = tuple[Annotated[str, Meta(max_length=256)], int, Annotated[list[int], Meta(max_length=MOST_MEMBERS)]]
_decoder = msgspec.msgpack.Decoder(Annotated[list[_Entry], Meta(max_length=MOST_ENTRIES)])


class Cancels:
    def __init__(self) -> None:
        self._here: dict[Name, list[Delivery]] = {}
        self._early: OrderedDict[Name, Sequence[int]] = OrderedDict()
        self.remembered = 0
        """Members of those, all together."""

    def enter(self, delivery: Delivery) -> list[int]:
        """A batch came; which of its members (by index here) have gone already."""
        name = (delivery.gateway, delivery.home)
        self._here.setdefault(name, []).append(delivery)
        return _indexes(delivery, self._forget(name))

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
        self._forget(name)
        self._early[name] = members
        self.remembered += len(members)
        while len(self._early) > REMEMBERED or self.remembered > MOST_MEMBERS:
            self._forget(next(iter(self._early)))

    def _forget(self, name: Name) -> Sequence[int]:
        members = self._early.pop(name, ())
        self.remembered -= len(members)
        return members


def _indexes(delivery: Delivery, members: Sequence[int]) -> list[int]:
    if delivery.attempt:
        return [0] if delivery.member in members else []
    return [at for at in members if 0 <= at < len(delivery.batch.members)]
