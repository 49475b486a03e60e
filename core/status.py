"""Error → HTTP status and gRPC code: the one table, for every edge.

The gRPC names are those of `grpc.StatusCode`; this file imports no gRPC, the edge looks them up.
"""

from __future__ import annotations

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
