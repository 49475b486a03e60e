"""What can go wrong, and whose fault it is.

    PenstockError
    ├── InvalidRequest        the caller sent something that cannot be understood or does not fit the model
    ├── Unauthenticated       no credential, or one that is unknown, expired or revoked
    ├── PermissionDenied      a known caller whose role or grants do not cover the action
    ├── NotFound              no such model, version, alias, key or route (or none that the caller may see)
    ├── MethodNotAllowed      the path exists, the verb does not
    ├── SlowSender            the request did not arrive within its receive deadline
    ├── Conflict              the name is taken, or the record changed underneath the caller
    ├── TooLarge              the request exceeds a size limit
    ├── UnsupportedMedia      a Content-Encoding or media type that is not accepted
    ├── QuotaExceeded         the caller's own allowance is spent
    ├── HeadersTooLarge       request line and headers exceed their limit
    ├── ModelFailed           the model raised; details stand in the log under the error id
    ├── Internal              a defect of ours; details stand in the log under the error id
    ├── Unsupported           part of the protocol that this server does not offer
    ├── Unavailable           cannot be served now, may be later
    │   ├── NotReady          the model or version is not loaded or still loading
    │   ├── QueueFull         the model's queue is at its bound
    │   ├── Hopeless          the deadline cannot be met: refused before any work
    │   ├── WorkerLost        the worker died or was lost with the request aboard
    │   └── Draining          the server is stopping
    └── DeadlineExceeded      the request's deadline passed before an answer

The domain raises these; the edges translate them by the one table in `core/status.py`.
"""

from __future__ import annotations

import secrets


class PenstockError(Exception):
    """Base of every error with a meaning on the wire.

    `message` is shown to callers: never a path, a queue name, a class name or a traceback.
    `retry_after` is in seconds (None: retrying is pointless). `error_id` names the log line with the details.
    """

    reason = "internal"
    retry_after: float | None = None
    error_id: str | None = None

    def __init__(self, message: str, *, retry_after: float | None = None, error_id: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if retry_after is not None:
            self.retry_after = retry_after
        if error_id is not None:
            self.error_id = error_id

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message!r})"


class InvalidRequest(PenstockError):
    reason = "invalid_request"


class Unauthenticated(PenstockError):
    reason = "unauthenticated"


class PermissionDenied(PenstockError):
    reason = "permission_denied"


class NotFound(PenstockError):
    reason = "not_found"


class MethodNotAllowed(PenstockError):
    reason = "method_not_allowed"


class SlowSender(PenstockError):
    reason = "slow_sender"


class Conflict(PenstockError):
    reason = "conflict"


class TooLarge(PenstockError):
    reason = "too_large"


class UnsupportedMedia(PenstockError):
    reason = "unsupported_media"


class QuotaExceeded(PenstockError):
    reason = "quota_exceeded"
    retry_after = 1.0


class HeadersTooLarge(PenstockError):
    reason = "headers_too_large"


class ModelFailed(PenstockError):
    reason = "model_failed"


class Internal(PenstockError):
    reason = "internal"


class Unsupported(PenstockError):
    reason = "unsupported"


class Unavailable(PenstockError):
    reason = "unavailable"
    retry_after = 1.0


class NotReady(Unavailable):
    reason = "not_ready"
    version: tuple[str, str] | None = None
    """(model, version in digits or '') where it is a known one that is not served: who counts goes by it."""


class QueueFull(Unavailable):
    reason = "queue_full"


class Hopeless(Unavailable):
    reason = "hopeless"


class WorkerLost(Unavailable):
    reason = "worker_lost"


class Draining(Unavailable):
    reason = "draining"


class DeadlineExceeded(PenstockError):
    reason = "deadline_exceeded"


def leaves(base: type[PenstockError] = PenstockError) -> list[type[PenstockError]]:
    """Every error class below `base`, in the order of their definition."""
    found: list[type[PenstockError]] = []
    for child in base.__subclasses__():
        found += [child, *leaves(child)]
    return found


def new_error_id() -> str:
    """What an answer and the line of the log that explains it have in common."""
    return secrets.token_hex(8)


def printable(text: str, most: int) -> str:
    """The first `most` characters; a � for each that is none to look at (line ends, escapes, halves of surrogates)."""
    text = text[:most]
    return (
        text
        if text.isprintable()
        else "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
    )


BY_REASON: dict[str, type[PenstockError]] = {error.reason: error for error in leaves()}
"""How an error crosses a process boundary: by its `reason`, rebuilt on the other side."""
