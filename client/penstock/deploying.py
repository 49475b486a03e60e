"""A change of a deployment: what is there is read, and written back with what was named, if nobody else wrote."""

from __future__ import annotations

from typing import NamedTuple

from penstock import calls
from penstock.calls import Record
from penstock.predicting import Flow

MEMBERS = ("replicas", "max_replicas", "cpus", "gpus", "accelerator")


class Wish(NamedTuple):
    """What is to change; None: as it is."""

    replicas: int | None = None
    max_replicas: int | None = None
    cpus: float | None = None
    gpus: float | None = None
    accelerator: str | None = None


def deploy(name: str, wish: Wish) -> Flow[Record]:
    now = yield calls.deployment(name)
    done: Record = yield calls.set_deployment(name, changed(now, wish))
    return done


def changed(now: Record, wish: Wish) -> Record:
    """The deployment to ask for. The most rises with the least where only that is named."""
    named = {name: value for name, value in wish._asdict().items() if value is not None}
    body = {**{name: now[name] for name in (*MEMBERS, "revision")}, **named}
    if wish.max_replicas is None:
        body["max_replicas"] = max(body["max_replicas"], body["replicas"])
    return body
