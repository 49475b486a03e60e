"""Frames to the broker without a task, a lock or a future for each: replies with their acknowledgements, and beats.

The library's own `basic_publish` takes a channel lock and a coroutine; without confirms neither is needed. What is put
here goes out in order, so a reply is with the broker before the acknowledgement that follows it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from aiormq.abc import ChannelFrame, FrameType
from aiormq.channel import Channel
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader

Frames = list[FrameType | ContentBody]


class Outlet:
    """One channel that has no confirms."""

    def __init__(self, channel: Channel) -> None:
        self._number = channel.number
        self._room = channel.max_content_size
        self._queue: asyncio.Queue[ChannelFrame] = channel.write_queue
        self._late: deque[ChannelFrame] = deque()
        self._pushing: asyncio.Task[None] | None = None

    def message(self, routing_key: str, body: bytes, properties: Basic.Properties, exchange: str = "") -> Frames:
        """The frames of one message; one that cannot be routed is dropped by the broker."""
        parts = [body[at : at + self._room] for at in range(0, len(body), self._room)]
        header = ContentHeader(properties=properties, body_size=len(body))
        return [Basic.Publish(exchange=exchange, routing_key=routing_key), header, *map(ContentBody, parts)]

    def send(self, frames: Sequence[FrameType | ContentBody]) -> None:
        """Hand frames over, now if there is room, else behind those that wait."""
        packed = ChannelFrame.marshall(self._number, frames)
        if self._pushing is None:
            with suppress(asyncio.QueueFull):
                self._queue.put_nowait(packed)
                return
        self._late.append(packed)
        if self._pushing is None:
            self._pushing = asyncio.create_task(self._push())

    def close(self) -> None:
        """Drop what waits: the connection is gone."""
        self._late.clear()
        if self._pushing is not None:
            self._pushing.cancel()

    async def _push(self) -> None:
        while self._late:
            packed, self._late = ChannelFrame(b"".join(one.payload for one in self._late), False), deque()
            await self._queue.put(packed)
        self._pushing = None


def ack(tag: int) -> Basic.Ack:
    return Basic.Ack(delivery_tag=tag)


def reject(tag: int) -> Basic.Reject:
    """Not to come back."""
    return Basic.Reject(delivery_tag=tag, requeue=False)
