"""Calls of a driver that are begun run to their end."""

from __future__ import annotations

import asyncio

import pytest

from repository.uncancelled import Uncancelled, to_its_end


class Driver:
    """A collection as drivers have them: calls to wait for, and cursors."""

    name = "records"

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.answers = asyncio.Event()
        self.answers.set()

    async def call(self, what: str) -> str:
        await self.answers.wait()
        self.ended.append(what)
        if what == "bad":
            raise ValueError(what)
        return what

    def cursor(self) -> Driver:
        return self


async def test_who_gives_up_waiting_leaves_the_call_alone() -> None:
    """Also where it fails later: nobody hears of that."""
    driver = Driver()
    driver.answers.clear()
    wrapped = Uncancelled(driver)
    for what in ("good", "bad"):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await wrapped.call(what)
    assert driver.ended == []
    driver.answers.set()
    async with asyncio.timeout(20):
        while len(driver.ended) < 2:
            await asyncio.sleep(0)
    assert driver.ended == ["good", "bad"]


async def test_results_and_errors_are_the_drivers() -> None:
    wrapped = Uncancelled(Driver())
    assert await wrapped.call("one") == "one"
    assert await wrapped.cursor().call("two") == "two"
    assert wrapped.name == "records"
    with pytest.raises(ValueError, match="bad"):
        await wrapped.call("bad")


async def test_a_call_that_is_cancelled_itself_is_cancelled() -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await to_its_end(cancelled())
