"""Error → HTTP status and gRPC code: the one table, for every edge.

The gRPC names are those of `grpc.StatusCode`; this file imports no gRPC, the edge looks them up.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from core import errors
from core.errors import PenstockError


class Status(NamedTuple):
    http: int
    grpc: str


TABLE: dict[type[PenstockError], Status] = {
    errors.InvalidRequest: Status(400, "INVALID_ARGUMENT"),
    errors.Unauthenticated: Status(401, "UNAUTHENTICATED"),
    errors.PermissionDenied: Status(403, "PERMISSION_DENIED"),
    errors.NotFound: Status(404, "NOT_FOUND"),
    errors.MethodNotAllowed: Status(405, "UNIMPLEMENTED"),
    errors.SlowSender: Status(408, "DEADLINE_EXCEEDED"),
    errors.Conflict: Status(409, "ALREADY_EXISTS"),
    errors.TooLarge: Status(413, "RESOURCE_EXHAUSTED"),
    errors.UnsupportedMedia: Status(415, "INVALID_ARGUMENT"),
    errors.QuotaExceeded: Status(429, "RESOURCE_EXHAUSTED"),
    errors.HeadersTooLarge: Status(431, "RESOURCE_EXHAUSTED"),
    errors.ModelFailed: Status(500, "INTERNAL"),
    errors.Internal: Status(500, "INTERNAL"),
    errors.Unsupported: Status(501, "UNIMPLEMENTED"),
    errors.Unavailable: Status(503, "UNAVAILABLE"),
    errors.DeadlineExceeded: Status(504, "DEADLINE_EXCEEDED"),
}


def status_of(error: BaseException) -> Status:
    """The row of the nearest class; anything that is not a `PenstockError` is `Internal`."""
    for ancestor in type(error).__mro__:
        row = TABLE.get(ancestor)
        if row is not None:
            return row
    return TABLE[errors.Internal]


class Answer(NamedTuple):
    """An error as HTTP tells it, before it is bytes."""

    status: int
    headers: dict[str, str]
    content: dict[str, object]


def answer_to(error: PenstockError) -> Answer:
    """`{"error": message}`, with `error_id` where there is one; `Retry-After` in whole seconds, at least one."""
    status = status_of(error).http
    headers: dict[str, str] = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    content: dict[str, object] = {"error": error.message}
    if error.error_id is not None:
        content["error_id"] = error.error_id
    return Answer(status, headers, content)
