"""A connection to the broker that comes back, whatever ended it."""

from __future__ import annotations

import asyncio
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractConnection

from core.broker import Link

WITHIN_S = 20.0


async def test_a_set_up_that_the_library_cancels_is_tried_again(amqp_url: str) -> None:
    """It tells of a connection that ends meanwhile by a cancellation: nobody here has asked for one."""
    tries: list[AbstractConnection] = []
    lost: list[None] = []

    async def opened(connection: AbstractConnection) -> None:
        tries.append(connection)
        if len(tries) == 1:
            raise asyncio.CancelledError

    link = Link(amqp_url, "test", opened, lambda: lost.append(None))
    running = asyncio.create_task(link.run())
    assert await link.until_up(WITHIN_S)
    assert (len(tries), len(lost)) == (2, 1)
    await link.close()
    await asyncio.wait_for(running, WITHIN_S)


@pytest.mark.parametrize("error", [StopAsyncIteration(), asyncio.CancelledError(), AttributeError("reader"), OSError()])
async def test_whatever_the_library_raises_the_broker_is_away(
    amqp_url: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """StopAsyncIteration where a proxy, whose broker is down, hangs up at once; by itself it would end the process."""
    tries: list[None] = []
    connect = aio_pika.connect

    async def hung_up_twice(*values: Any, **named: Any) -> AbstractConnection:
        tries.append(None)
        if len(tries) <= 2:
            raise error
        connection: AbstractConnection = await connect(*values, **named)
        return connection

    async def opened(connection: AbstractConnection) -> None: ...

    monkeypatch.setattr(aio_pika, "connect", hung_up_twice)
    link = Link(amqp_url, "test", opened, lambda: None)
    running = asyncio.create_task(link.run())
    assert await link.until_up(WITHIN_S), running
    assert len(tries) == 3
    await link.close()
    await asyncio.wait_for(running, WITHIN_S)


async def test_who_is_cancelled_stops(amqp_url: str) -> None:
    """A cancellation that was meant is heeded."""

    async def opened(connection: AbstractConnection) -> None: ...

    link = Link(amqp_url, "test", opened, lambda: None)
    running = asyncio.create_task(link.run())
    assert await link.until_up(WITHIN_S)
    running.cancel()
    await asyncio.wait([running], timeout=WITHIN_S)
    assert running.cancelled()
