"""Whether the cluster has room for a replica, in words for people. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from repository.records import Deployment

CPU, GPU = "CPU", "GPU"
TYPE = "accelerator_type:"
TYPE_SHARE = 0.001
"""Ray counts a type of device as one unit a node, of which each replica that asks for it takes this much."""


class Spec(NamedTuple):
    """What Ray Serve is to run for one version."""

    replicas: int
    cpus: float
    gpus: float = 0.0
    accelerator: str = ""

    @property
    def resources(self) -> dict[str, float]:
        """Of one replica, as Ray counts them."""
        asked = {CPU: self.cpus}
        if self.gpus:
            asked[GPU] = self.gpus
        if self.accelerator:
            asked[TYPE + self.accelerator] = TYPE_SHARE
        return asked


class Node(NamedTuple):
    total: Mapping[str, float]
    free: Mapping[str, float]


class Cluster(NamedTuple):
    """`pending`: the resources of each actor that Ray has found no node for."""

    nodes: Sequence[Node] = ()
    pending: Sequence[Mapping[str, float]] = ()


def spec_of(deployment: Deployment, replicas: int) -> Spec:
    return Spec(replicas, deployment.cpus, deployment.gpus, deployment.accelerator)


def pending(spec: Spec, cluster: Cluster) -> bool:
    """Whether an actor like a replica of `spec` waits for a node."""
    return any(_alike(spec.resources, asked) for asked in cluster.pending)


def shortage(spec: Spec, nodes: Sequence[Node]) -> str:
    """What a replica asks for, and what there is."""
    asked = f"a replica asks for {_listed(spec.resources)}"
    if not nodes:
        return f"{asked}: the cluster has no node"
    able = [node for node in nodes if _holds(node.total, spec.resources)]
    if not able:
        largest = max(nodes, key=lambda node: (node.total.get(GPU, 0.0), node.total.get(CPU, 0.0)))
        return f"{asked}: no node has that ({_many(len(nodes))}, the largest has {_listed(_told(largest.total, spec))})"
    freest = max(able, key=lambda node: tuple(node.free.get(name, 0.0) for name in reversed(spec.resources)))
    told = _listed(_told(freest.free, spec))
    return f"{asked}: no node has that free ({len(able)} of {_many(len(nodes))} could, the most is {told})"


def _alike(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    return one.keys() == other.keys() and all(abs(one[name] - other[name]) < 1e-6 for name in one)


def _holds(resources: Mapping[str, float], asked: Mapping[str, float]) -> bool:
    return all(resources.get(name, 0.0) >= amount - 1e-9 for name, amount in asked.items())


def _told(resources: Mapping[str, float], spec: Spec) -> dict[str, float]:
    """Of a node's resources those that matter to `spec`, its devices' types among them."""
    types = {name: 1.0 for name in resources if name.startswith(TYPE)} if spec.accelerator else {}
    return {CPU: resources.get(CPU, 0.0), **({GPU: resources.get(GPU, 0.0)} if spec.gpus else {}), **types}


def _listed(resources: Mapping[str, float]) -> str:
    counts = [_counted(name, amount) for name, amount in resources.items() if not name.startswith(TYPE)]
    types = [name.removeprefix(TYPE) for name in resources if name.startswith(TYPE)]
    return " and ".join(counts) + (f" ({', '.join(types)})" if types else "")


def _counted(name: str, amount: float) -> str:
    return f"no {name}" if amount < 1e-4 else f"{round(amount, 4):g} {name}{'' if amount == 1 else 's'}"


def _many(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"
