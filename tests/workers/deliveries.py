"""Deliveries as the broker's library makes them."""

from __future__ import annotations

from typing import Any

from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from core.topology import BOOT, INSTANCE
from tests.workers.samples import version
from workers.delivery import Delivery, read
from workers.messages import Batch, encode


def message(batch: Batch, suspect: bool = False, **headers: Any) -> DeliveredMessage:
    """Of a batch of the gateway `g`."""
    properties = Basic.Properties(
        correlation_id=str(batch.id),
        reply_to="reply.g",
        expiration="1000",
        headers={INSTANCE: "g", BOOT: "b", **headers},
    )
    body = b"".join(encode(batch))[4:]
    deliver = Basic.Deliver(consumer_tag="c", delivery_tag=9)
    return DeliveredMessage(deliver, ContentHeader(properties=properties, body_size=len(body)), body, None)  # type: ignore[arg-type]


def delivery_of(batch: Batch, suspect: bool = False, **headers: Any) -> Delivery:
    return read(message(batch, suspect, **headers), version(), suspect)
