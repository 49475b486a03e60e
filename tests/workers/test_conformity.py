"""What an untrusted process may say has failed, and what its words are to a caller."""

from __future__ import annotations

import pytest

from core.errors import BY_REASON, ModelFailed
from tests.workers.samples import batch_of, rows, version
from workers.conformity import Conformity, check_times
from workers.messages import Failure, Reply, Timing

GIVEN = {
    "invalid_request",
    "too_large",
    "model_failed",
    "internal",
    "unavailable",
    "worker_lost",
    "deadline_exceeded",
}


def check(failure: Failure) -> None:
    Conformity(version()).check(batch_of(rows(1)), Reply(1, [failure], Timing()))


@pytest.mark.parametrize("reason", [*BY_REASON, "", "no_such", "Internal", "x" * 100_000])
def test_a_worker_gives_its_own_reasons_only(reason: str) -> None:
    """Not those of who checks keys, quotas or queues: a caller is told nothing by another's name."""
    if reason in GIVEN:
        check(Failure(reason, "why", "0123456789abcdef"))
        return
    with pytest.raises(ValueError, match="no worker gives") as caught:
        check(Failure(reason, "Traceback " * 100_000))
    assert "Traceback" in str(caught.value), "the log is to have it"
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("error_id", ["id\r\n", "é", " ", "a b", "x" * 65, "../log"])
def test_an_error_id_is_one(error_id: str) -> None:
    """It goes into headers and trailers."""
    with pytest.raises(ValueError, match="error id"):
        check(Failure("internal", "why", error_id))


def test_a_failures_words_are_one_line_of_bounded_length() -> None:
    told = Failure("model_failed", "a\r\nX: y\x00\x1b[2J" + "é" * 3_000_000, "e1").error()
    assert isinstance(told, ModelFailed)
    assert told.message.startswith("a��X: y��[2Jéé")
    assert told.message.isprintable()
    assert len(told.message.encode()) <= 4096
    assert len(told.message) == 2048
    assert told.error_id == "e1"
    assert Failure("model_failed", "the model's é failed").error().message == "the model's é failed"


@pytest.mark.parametrize(
    "timing",
    [Timing(queue=-1), Timing(compute_infer=10**12), Timing(executed_rows=-1), Timing(executed_batches=0)],
    ids=["before", "longer than it is gone", "rows", "batches"],
)
def test_times_are_those_that_have_passed(timing: Timing) -> None:
    check_times(Timing(1, 2, 3, 4, 5), 1000)
    with pytest.raises(ValueError, match="a reply's"):
        check_times(timing, 1000)
