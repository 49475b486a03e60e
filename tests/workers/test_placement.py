"""Whether there is room for a replica, and what people are told where there is none."""

from __future__ import annotations

import pytest

from repository.records import Deployment
from workers.placement import Cluster, Node, Spec, pending, shortage, spec_of

H200 = {"CPU": 16.0, "GPU": 2.0, "accelerator_type:H200": 1.0, "memory": 1e11}
SMALL = {"CPU": 2.0, "memory": 1e10}


@pytest.mark.parametrize(
    ("spec", "nodes", "told"),
    [
        (Spec(1, 4), [], "a replica asks for 4 CPUs: the cluster has no node"),
        (
            Spec(1, 4),
            [Node(SMALL, SMALL)],
            "a replica asks for 4 CPUs: no node has that (1 node, the largest has 2 CPUs)",
        ),
        (
            Spec(1, 0.1, 0.5),
            [Node(SMALL, SMALL), Node(SMALL, SMALL)],
            "a replica asks for 0.1 CPUs and 0.5 GPUs: no node has that (2 nodes, the largest has 2 CPUs and no GPU)",
        ),
        (
            Spec(1, 1, 1, "L4"),
            [Node(SMALL, SMALL), Node(H200, H200)],
            "a replica asks for 1 CPU and 1 GPU (L4): no node has that "
            "(2 nodes, the largest has 16 CPUs and 2 GPUs (H200))",
        ),
        (
            Spec(1, 2),
            [Node(SMALL, {"CPU": 0.30000001})],
            "a replica asks for 2 CPUs: no node has that free (1 of 1 node could, the most is 0.3 CPUs)",
        ),
        (
            Spec(1, 1, 1),
            [Node(SMALL, SMALL), Node(H200, {"CPU": 9}), Node(H200, {"CPU": 3, "GPU": 0.5})],
            "a replica asks for 1 CPU and 1 GPU: no node has that free "
            "(2 of 3 nodes could, the most is 3 CPUs and 0.5 GPUs)",
        ),
    ],
    ids=["no node", "too many CPUs", "no GPU", "another type", "taken", "GPUs taken"],
)
def test_shortage(spec: Spec, nodes: list[Node], told: str) -> None:
    """What it asks for and what there is, without what it did not ask for."""
    assert shortage(spec, nodes) == told


def test_what_waits_is_known_by_its_resources() -> None:
    """As Ray counts them: a type of device is a thousandth of a resource of its own."""
    waiting = Cluster([], [{"CPU": 1.0}, {"CPU": 0.1, "GPU": 0.5, "accelerator_type:H200": 0.001}])
    assert pending(Spec(3, 1), waiting)
    assert pending(Spec(1, 0.1, 0.5, "H200"), waiting)
    assert not pending(Spec(1, 0.1, 0.5), waiting)
    assert not pending(Spec(1, 2), waiting)


def test_a_deployment_says_what_each_replica_gets() -> None:
    deployment = Deployment(model="m", replicas=2, max_replicas=4, cpus=0.5, gpus=1, accelerator="H200")
    assert spec_of(deployment, 3) == Spec(3, 0.5, 1, "H200")
