"""Who is alive, from their beats; times are arguments, so nothing waits here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.beats import READY, STARTING, GatewayBeat, ReplicaBeat, Share
from core.fleet import FORGOTTEN_AFTER_NS, SILENT_AFTER_NS, WINDOW_NS, Fleet

NOW = 10**12


def replica(sender: str = "r", state: str = READY, sent: int = 0, version: int = 1) -> ReplicaBeat:
    return ReplicaBeat(sender=sender, boot="b", sent=sent, model="m", version=version, attempt=1, state=state)


def gateway(sender: str, revision: int = 5, *versions: int) -> GatewayBeat:
    shares = [Share("m", version) for version in versions]
    return GatewayBeat(sender=sender, boot="b", sent=0, revision=revision, ready=True, open=shares)


def fleet(*beats: ReplicaBeat | GatewayBeat, at: int = NOW) -> Fleet:
    made = Fleet()
    for beat in beats:
        made.hear(beat, at)
    return made


@pytest.mark.parametrize(("silent", "counts"), [(0, True), (SILENT_AFTER_NS, True), (SILENT_AFTER_NS + 1, False)])
def test_who_is_silent_does_not_count(silent: int, counts: bool) -> None:
    heard = fleet(replica(), gateway("g"))
    assert bool(heard.replicas(NOW + silent)) == counts
    assert bool(heard.ready("m", 1, NOW + silent)) == counts
    assert bool(heard.gateways(NOW + silent)) == counts


def test_only_replicas_that_are_ready_make_a_version_ready() -> None:
    """The latest beat of each counts."""
    heard = fleet(replica("a", STARTING), replica("b"), replica("c", version=2))
    assert [beat.sender for beat in heard.ready("m", 1, NOW)] == ["b"]
    heard.hear(replica("b", STARTING), NOW)
    assert heard.ready("m", 1, NOW) == []
    assert len(heard.of("m", 1, NOW)) == 2


def test_the_smallest_difference_of_clocks_is_kept() -> None:
    """Delays on the way only make it larger."""
    heard = Fleet()
    for sent, arrived in ((100, 1_150), (200, 1_220), (300, 1_900)):
        heard.hear(replica(sent=sent), arrived)
    assert heard.offset("r") == 1_020
    assert heard.offset("stranger") is None


BEAT_NS = 1_000_000_000
PATH_NS = st.integers(0, 50_000_000)


@given(
    delays=st.lists(PATH_NS, min_size=2, max_size=1000),
    drift_ppm=st.sampled_from([-50, 0, 50]),
    pace=st.integers(1, 3),
    ahead=st.integers(-(10**15), 10**15),
)
def test_the_difference_of_clocks_is_followed(delays: list[int], drift_ppm: int, pace: int, ahead: int) -> None:
    """It is never larger than the quickest way of the last window allows, and never smaller than the clocks have
    differed since the window before: so it follows a drift of 50 millionths in both directions."""
    heard, seen = Fleet(), list[tuple[int, int, int]]()
    for number, delay in enumerate(delays):
        sent = NOW + number * pace * BEAT_NS
        truth = ahead + (sent - NOW) * drift_ppm // 1_000_000
        arrived = sent + delay
        heard.hear(replica(sent=sent - truth), arrived)
        seen.append((arrived, truth, delay))
        offset = heard.offset("r")
        assert offset is not None
        if number % 40 and number + 1 < len(delays):  # each look costs as much as all beats so far
            continue
        assert offset <= min(true + late for at, true, late in seen if at > arrived - WINDOW_NS)
        assert offset >= min(true for at, true, _ in seen if at > arrived - 2 * WINDOW_NS)


@pytest.mark.parametrize("drift_ppm", [-50, 50])
def test_a_drift_of_a_day_is_followed(drift_ppm: int) -> None:
    """4.3 s apart by then: a deadline is off by what two windows bring, not by all of that."""
    heard = Fleet()
    for second in range(0, 86_400, 10):
        arrived = NOW + second * BEAT_NS
        truth = second * BEAT_NS * drift_ppm // 1_000_000
        heard.hear(replica(sent=arrived - truth), arrived)
        offset = heard.offset("r")
        assert offset is not None
        assert abs(offset - truth) <= 2 * WINDOW_NS * 50 // 1_000_000


def test_who_was_silent_for_long_is_forgotten() -> None:
    """Instances come and go: nothing of them may be kept for ever."""
    heard = fleet(replica(), gateway("g"))
    heard.forget(NOW + FORGOTTEN_AFTER_NS)
    assert heard.offset("r") is not None
    heard.forget(NOW + FORGOTTEN_AFTER_NS + 1)
    assert heard.offset("r") is None
    assert heard.offset("g") is None
    assert vars(heard) == vars(Fleet())


def test_who_says_goodbye_is_gone_at_once() -> None:
    heard = fleet(replica(), gateway("g"))
    heard.dismiss("r")
    heard.dismiss("g")
    assert heard.replicas(NOW) == []
    assert heard.gateways(NOW) == []


@pytest.mark.parametrize(
    ("gateways", "served"),
    [
        ([], True),
        ([gateway("a", 5, 1)], True),
        ([gateway("a", 6, 2, 1)], True),
        ([gateway("a", 4, 1)], False),
        ([gateway("a", 5, 2)], False),
        ([gateway("a", 5, 1), gateway("b", 5)], False),
    ],
)
def test_a_version_is_served_when_every_gateway_has_it(gateways: list[GatewayBeat], served: bool) -> None:
    """Of the revision that was asked for, or a later one; a silent gateway holds nobody up."""
    heard = fleet(*gateways)
    assert heard.served("m", 1, 5, NOW) == served
    assert heard.served("m", 1, 5, NOW + SILENT_AFTER_NS + 1)


def test_a_revision_is_followed_when_every_gateway_knows_of_it() -> None:
    assert Fleet().followed(5, NOW)
    heard = fleet(gateway("a", 5), gateway("b", 4))
    assert heard.followed(4, NOW)
    assert not heard.followed(5, NOW)
    assert heard.followed(5, NOW + SILENT_AFTER_NS + 1)
