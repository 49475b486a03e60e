"""What becomes of a batch that a process died with. Pure: what to publish is returned, the caller does it.

    batch came back ──► each member by itself, attempt 1 ──► came back ──► attempt 2 ──► … ──► after the last: poison

A broker cannot tell a message that ran and killed from one that only waited in the same process: so none is trusted
to run beside others again, and only one that dies by itself, again and again, is given up.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple, cast

import msgspec
from pamqp.commands import Basic
from pamqp.common import FieldTable

from core.errors import DeadlineExceeded, ModelFailed, WorkerLost, new_error_id
from core.topology import ATTEMPT, MEMBER, SUSPECT_ATTEMPTS
from repository.records import Version
from workers.clocks import remaining_ms
from workers.delivery import Delivery
from workers.messages import Batch, Column, Failure, Reply, encode, failure_of

EXPIRED = failure_of(DeadlineExceeded("the deadline passed before the model could answer"))
LONGEST_MS = 24 * 3600 * 1000
"""A broker refuses a longer TTL than it can count."""
CROWDED = failure_of(WorkerLost("the model's process was lost, and too many requests wait to be tried again"))


class Retry(NamedTuple):
    """A member's next try, as a message for the suspect queue; or why it gets none."""

    member: int
    body: bytes
    headers: dict[str, object]
    expiration_ms: int | None
    refused: Failure | None = None

    def properties(self, delivery: Delivery) -> Basic.Properties:
        """Those of the batch that it comes from, but its own budget and attempt."""
        return Basic.Properties(
            correlation_id=str(delivery.home),
            reply_to=delivery.reply_to,
            delivery_mode=1,
            expiration=None if self.expiration_ms is None else str(self.expiration_ms),
            headers=cast(FieldTable, self.headers),
        )


def retries(delivery: Delivery, now: int) -> list[Retry]:
    """What each member of a batch gets whose process died with it."""
    return [_retry(delivery, at, now) for at in range(len(delivery.batch.members))]


def exhausted(delivery: Delivery) -> bool:
    """Whether it has had all its tries."""
    return delivery.attempt >= SUSPECT_ATTEMPTS


def _retry(delivery: Delivery, at: int, now: int) -> Retry:
    deadline = delivery.batch.members[at].deadline
    left = remaining_ms(deadline, now) if deadline else delivery.expiration_ms
    member = at if delivery.attempt == 0 else delivery.member
    headers = delivery.headers | {ATTEMPT: delivery.attempt + 1, MEMBER: member}
    if left is not None and left <= 0:
        return Retry(member, b"", headers, 0, EXPIRED)
    return Retry(member, alone(delivery, at), headers, None if left is None else min(left, LONGEST_MS))


def alone(delivery: Delivery, at: int) -> bytes:
    """Member `at` by itself as a message, with its gateway's id and in its gateway's clock again."""
    batch = delivery.batch
    member = msgspec.structs.replace(batch.members[at])
    if member.deadline:
        member.deadline -= delivery.shift or 0
    columns = [Column(c.name, c.datatype, c.shape, [c.pieces[at]]) for c in batch.inputs]
    return as_body(Batch(delivery.home, batch.batched, [member], columns, batch.parameters))


def as_body(message: Batch | Reply) -> bytes:
    """A frame without its length field: what a message carries."""
    head, *pieces = encode(message)
    return b"".join([memoryview(head)[4:], *pieces])


class Poison(msgspec.Struct):
    """What is kept of a message that was given up: never its payload."""

    cause: str
    digest: str
    """SHA-256 of the payload, in hex."""
    model: str
    version: int
    when: float
    """Unix seconds, for people."""
    error_id: str = ""


def poison(body: bytes, cause: str, version: Version, when: float, error_id: str = "") -> bytes:
    """The record for the poison queue: JSON."""
    digest = hashlib.sha256(body).hexdigest()
    return msgspec.json.encode(Poison(cause, digest, version.model, version.version, when, error_id))


def given_up() -> Failure:
    """What the caller of a member hears that has had all its tries."""
    message = f"the model's process ended on each of {SUSPECT_ATTEMPTS} tries of this request"
    return failure_of(ModelFailed(message, error_id=new_error_id()))


def persistent() -> Basic.Properties:
    """Properties of a poison record."""
    return Basic.Properties(delivery_mode=2, content_type="application/json")
