"""What the reconciler may change, and only while it is the one that reconciles.

A step takes long: it waits for Serve, for gateways, for queues. Of two processes that both take themselves for the one,
the earlier would take away what the later has just deployed. So nothing is changed but through here, each change is
asked for anew, and so is each wait that lies between two of them: a lease that was lost and won back in between shows
there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from repository.catalog import Place
from repository.commands import Commands
from repository.records import Signature, Version
from workers.lookout import Lookout
from workers.placement import Cluster, Spec
from workers.reconcile import Application
from workers.states import States


class Lapsed(Exception):
    """Another process may reconcile by now: what was begun ends here, and the other goes on from there."""


class Serves(Protocol):
    """`workers/serving.py`. Every method raises Unavailable where Ray is away."""

    async def applications(self) -> dict[Place, Application]: ...

    async def cluster(self) -> Cluster: ...

    async def deploy(self, version: Version, spec: Spec) -> None: ...

    async def delete(self, place: Place) -> None: ...


class Mandate:
    """`held`: whether this process is the one. Every method but `held` raises Lapsed where it is not, Unavailable where
    what it changes is away."""

    def __init__(
        self, states: States, commands: Commands, serving: Serves, lookout: Lookout, held: Callable[[], bool]
    ) -> None:
        self.held = held
        self._states = states
        self._commands = commands
        self._serving = serving
        self._lookout = lookout

    def check(self) -> None:
        if not self.held():
            raise Lapsed

    async def say(self, version: Version, state: str, reason: str = "", best_effort: bool = False) -> None:
        """Write the state of a version (`workers/states.py`)."""
        self.check()
        await self._states.say(version, state, reason, best_effort)

    async def complete(self, version: Version, found: Signature, max_batch: int) -> Version:
        """Complete its record by what its load has found. Raises PenstockError where the two contradict each other."""
        self.check()
        return await self._commands.complete_signature(version, found, max_batch)

    async def deploy(self, version: Version, spec: Spec) -> None:
        self.check()
        await self._serving.deploy(version, spec)

    async def delete(self, place: Place) -> None:
        """Begin to stop its replicas."""
        self.check()
        await self._serving.delete(place)

    async def delete_queues(self, place: Place) -> None:
        self.check()
        await self._lookout.delete_queues(*place)
