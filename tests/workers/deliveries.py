"""Deliveries as a channel has them."""

from __future__ import annotations

from typing import Any

from core.express import Delivered, Properties
from core.topology import BOOT, INSTANCE
from tests.workers.samples import version
from workers.delivery import Delivery, read
from workers.messages import Batch, encode


def message(batch: Batch, suspect: bool = False, **headers: Any) -> Delivered:
    """Of a batch of the gateway `g`."""
    properties = Properties(
        correlation_id=str(batch.id),
        reply_to="reply.g",
        expiration="1000",
        headers={INSTANCE: "g", BOOT: "b", **headers},
    )
    body = b"".join(encode(batch))[4:]
    return Delivered("c", 9, False, "", "infer", properties, body)


def delivery_of(batch: Batch, suspect: bool = False, **headers: Any) -> Delivery:
    return read(message(batch, suspect, **headers), version(), suspect)
