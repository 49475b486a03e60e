"""What becomes of a batch that a process died with."""

from __future__ import annotations

import msgspec

from core.topology import ATTEMPT, INSTANCE, MEMBER, SUSPECT_ATTEMPTS
from tests.workers.deliveries import delivery_of
from tests.workers.samples import batch_of, rows, version
from workers.clocks import localise
from workers.messages import Batch, decode
from workers.suspects import EXPIRED, LONGEST_MS, Poison, exhausted, poison, retries

SECOND = 10**9


def test_each_member_gets_a_try_by_itself_in_its_gateways_own_terms() -> None:
    """Its own rows, id and clock, its own budget; everything that the headers said stays."""
    batch = batch_of(rows(1), rows(2, 3), number=7, deadlines=[100 * SECOND, 102 * SECOND], parameters={"p": 1})
    delivery = delivery_of(batch, traceparent="00-1-2-01")
    delivery.shift = 50 * SECOND
    localise(delivery.batch.members, delivery.shift)
    delivery.batch.id = 12345
    tries = retries(delivery, now=149 * SECOND)
    assert [retry.expiration_ms for retry in tries] == [1000, 3000]
    first, second = (decode(retry.body) for retry in tries)
    assert isinstance(first, Batch)
    assert isinstance(second, Batch)
    assert (first.id, second.id, first.parameters) == (7, 7, {"p": 1})
    assert [[m.deadline for m in one.members] for one in (first, second)] == [[100 * SECOND], [102 * SECOND]]
    assert bytes(second.inputs[0].pieces[0]) == rows(2, 3).tobytes()
    expected = {INSTANCE: "g", "boot": "b", "traceparent": "00-1-2-01", ATTEMPT: 1, MEMBER: 1}
    assert tries[1].headers == expected
    properties = tries[1].properties(delivery)
    assert (properties.correlation_id, properties.reply_to, properties.expiration) == ("7", "reply.g", "3000")


def test_who_has_no_time_left_gets_no_try() -> None:
    """And who named no deadline gets what the message had."""
    delivery = delivery_of(batch_of(rows(1), rows(2), deadlines=[SECOND, 0]))
    first, second = retries(delivery, now=SECOND)
    assert first.refused is EXPIRED
    assert (second.refused, second.expiration_ms) == (None, 1000)


def test_tries_are_counted_and_end() -> None:
    """The member keeps its place in the batch that it was of."""
    attempts = []
    for attempt in range(1, SUSPECT_ATTEMPTS + 1):
        delivery = delivery_of(batch_of(rows(1)), suspect=True, attempt=attempt, member=4)
        attempts.append(exhausted(delivery))
        (retry,) = retries(delivery, 0)
        assert (retry.member, retry.headers[MEMBER], retry.headers[ATTEMPT]) == (4, 4, attempt + 1)
    assert attempts == [False, False, True]
    assert not exhausted(delivery_of(batch_of(rows(1))))


def test_the_record_holds_no_payload() -> None:
    record = poison(b"secret", "it kills", version(), 12.5, "id")
    assert b"secret" not in record
    assert msgspec.json.decode(record, type=Poison) == Poison(
        "it kills", "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b", "m", 1, 12.5, "id"
    )


def test_a_deadline_beyond_what_a_broker_counts_is_cut() -> None:
    """It would end the channel, and with it every batch aboard, again and again."""
    (retry,) = retries(delivery_of(batch_of(rows(1), deadlines=[1 << 62])), 0)
    assert retry.expiration_ms == LONGEST_MS
