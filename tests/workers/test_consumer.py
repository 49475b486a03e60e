"""A replica at the broker: answers, coalescing, deadlines, cancellations, prefetch, beats, draining, bad messages."""

from __future__ import annotations

from tests.workers.asking import Replica, gateway_at
from tests.workers.samples import array_of, batch_of, rows


async def test_each_member_gets_its_own_rows(amqp_url: str) -> None:
    """In one reply under the gateway's own id, the last of its batch."""
    async with gateway_at(amqp_url) as asking, Replica(amqp_url):
        answer = await asking.ask(batch_of(rows(1), rows(2, 3)), number=77)
        results = await answer.done()
        assert [array_of(result)[:, 0].tolist() for result in results] == [[2], [4, 6]]
        assert answer.headers == [{"sequence": 0, "final": True}]
        assert answer.timing.executed_rows == 3
