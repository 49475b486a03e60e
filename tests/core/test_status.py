"""Every error has a status, and the statuses are those that the documents promise."""

from __future__ import annotations

import grpc
import pytest

from core.errors import BY_REASON, PenstockError, leaves
from core.status import TABLE, status_of

PROMISED = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    413: "RESOURCE_EXHAUSTED",
    415: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


@pytest.mark.parametrize("error", leaves(), ids=lambda error: error.__name__)
def test_the_table_is_total(error: type[PenstockError]) -> None:
    """Each error of the tree has its row, by itself or by its nearest ancestor, with a code that gRPC knows."""
    status = status_of(error("x"))
    assert any(ancestor in TABLE for ancestor in error.__mro__)
    assert status.grpc in grpc.StatusCode.__members__
    assert PROMISED.get(status.http, status.grpc) == status.grpc
    assert issubclass(error, BY_REASON[error.reason])


@pytest.mark.parametrize(("http", "code"), PROMISED.items())
def test_each_status_of_http_has_its_code(http: int, code: str) -> None:
    """The one that is promised and no other; no promised status has lost its row."""
    assert {status.grpc for status in TABLE.values() if status.http == http} == {code}


def test_anything_else_is_internal() -> None:
    """What is no error of ours is a 500."""
    assert status_of(ValueError("x")).http == 500
