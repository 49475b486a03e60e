"""Names and arguments of everything that stands at the broker (AMQP 0-9-1, RabbitMQ 3.10 to 4.x).

    infer.<model>.<version>           one message = one batch; shared by all replicas of the version
    infer.<model>.<version>.suspect   one message = one member of a batch whose delivery came back from a dead replica
    poison                            what was given up after `SUSPECT_ATTEMPTS`: cause and digest, never the payload
    reply.<instance>.<connection>     answers to one connection of one gateway
    events (topic exchange)           `changed`: desired state was written; `cancel.<model>.<version>`: callers went
    beats (topic exchange)            `replica.<model>.<version>` and `gateway`, each second

A body of an infer queue is a frame of `workers/messages.py` (kind BATCH, without its length field); of a reply queue
one of kind REPLY; of `cancel.…` a msgpack list of [gateway instance, batch id, members]; of `beats` one of
`core/beats.py`. Properties and headers of a batch:

    message_id      unique among all publishes of its channel
    correlation_id  the batch's id at its gateway, in digits
    reply_to        the reply queue
    expiration      milliseconds until its longest member's deadline: TTL
    delivery_mode   1: transient
    headers         INSTANCE, BOOT: whose clock the members' deadlines are in;
                    traceparent, tracestate: the span that it belongs under, where a member is traced (core/trace.py);
                    of a suspect message ATTEMPT (1 = first try by itself), MEMBER (its index in the batch)

and of a reply: correlation_id, and headers SEQUENCE (0, 1, … of this batch), FINAL (no more will come), and MEMBER
where it answers that member alone: a batch split by a suspect redelivery is answered in as many replies. An empty body
with FINAL false and no MEMBER says that a batch is being split: its gateway is patient, and does not send it again.
"""

from __future__ import annotations

import secrets

EVENTS = "events"
BEATS = "beats"
POISON = "poison"
CHANGED = "changed"
GATEWAY = "gateway"

INSTANCE, BOOT, ATTEMPT, MEMBER = "instance", "boot", "attempt", "member"
SEQUENCE, FINAL = "sequence", "final"

SUSPECT_ATTEMPTS = 3
"""Tries of one member by itself, the batch that came back not counted."""

INFER_ARGUMENTS: dict[str, str | int] = {
    "x-queue-type": "classic",
    "x-max-length": 10_000,
    "x-overflow": "reject-publish",
}
"""Of infer and suspect queues. Constants: a declaration with others closes the channel (406)."""
EARS_ARGUMENTS: dict[str, str | int] = {"x-queue-type": "classic", "x-max-length": 10_000, "x-overflow": "drop-head"}
"""Of the queue of its own by which a process hears beats and events: it may lose some, and must not fill the broker."""
POISON_ARGUMENTS: dict[str, str | int] = {
    "x-queue-type": "classic",
    "x-max-length": 1_000,
    "x-overflow": "drop-head",
    "x-message-ttl": 7 * 24 * 3600 * 1000,
}


def infer_queue(model: str, version: int) -> str:
    return f"infer.{model}.{version}"


def suspect_queue(model: str, version: int) -> str:
    return f"infer.{model}.{version}.suspect"


def reply_queue(instance: str) -> str:
    """A fresh name for each connection: restoring an old one may be locked out for long."""
    return f"reply.{instance}.{secrets.token_hex(8)}"


def cancel_key(model: str, version: int) -> str:
    return f"cancel.{model}.{version}"


def replica_key(model: str, version: int) -> str:
    return f"replica.{model}.{version}"


def new_instance(kind: str) -> str:
    """The name of one process for its life: `gateway-1f3a…`."""
    return f"{kind}-{secrets.token_hex(8)}"
