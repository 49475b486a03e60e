"""All peers, in the order of the tables; and what Penstock is to reach beside them."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.peers import bentoml, litserve, mlserver, penstock, pytriton, ray_serve, triton
from benchmarks.peers.base import Peer

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        penstock.PEER,
        penstock.DISTRIBUTED_PEER,
        triton.PEER,
        pytriton.PEER,
        mlserver.PEER,
        litserve.PEER,
        bentoml.PEER,
        ray_serve.PEER,
        ray_serve.THROUGHPUT_PEER,
    )
}
OURS = ("penstock", "penstock-distributed")


class Goal(NamedTuple):
    """Requests a second of `ours` by those of `other`; without `at_least` it is only shown."""

    ours: str
    other: str
    callers: int
    at_least: float | None = None


GOALS = (
    Goal("penstock", "triton", 128, 2.0),
    Goal("penstock-distributed", "triton", 128, 1.5),
    Goal("penstock", "triton", 32),
    Goal("penstock-distributed", "triton", 32),
    *(
        Goal(ours, other, 128, at_least)
        for ours in OURS
        for other, at_least in (
            ("pytriton", 3.0),
            ("mlserver", 7.0),
            ("litserve", 10.0),
            ("bentoml", None),
            ("ray", 50.0),
            ("ray-throughput", 50.0),
        )
    ),
)
"""At 128 connections, and at 32 beside Triton, where a broker's way is long."""
