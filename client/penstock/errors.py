"""What can go wrong between a program and a Penstock server, and whose fault it is.

PenstockError
├── NotConfigured         no address or key is known, or the one that is known may not be used here
├── InvalidInput          what was to be sent does not fit the model, or cannot be read
├── NoAnswer              the server could not be reached, broke off, or did not answer in time
├── UnexpectedAnswer      something answered that does not speak the protocol, a redirect among them
└── ServerError           the server refused or failed; one leaf for each status
    ├── BadRequest        400 the request does not fit the model, or a pushed version would not load
    ├── Unauthenticated   401 no key, or one that is unknown, expired or revoked
    ├── PermissionDenied  403 the key's role or grants do not cover the action
    ├── NotFound          404 no such model, version, alias or key (or none that the key may see)
    ├── SlowSender        408 the request did not arrive in time
    ├── Conflict          409 the name is taken, or the record changed underneath
    ├── TooLarge          413 the request exceeds a size limit
    ├── UnsupportedMedia  415 a body that is not accepted in this form
    ├── QuotaExceeded     429 the key's own allowance is spent
    ├── ServerFailed      500 the model or the server failed; details stand in its log under the error id
    ├── Unsupported       501 a part of the protocol that the server does not offer
    ├── Unavailable       503 not now, perhaps after `retry_after` seconds
    └── DeadlineExceeded  504 the deadline passed before an answer
"""

from __future__ import annotations


class PenstockError(Exception):
    """Base of all; `str(error)` is one sentence. `status`: of the HTTP answer, None where there was none.

    `retry_after`: seconds after which trying again makes sense; `error_id`: names the server's log line.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        error_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.error_id = error_id
        self.retry_after = retry_after


class NotConfigured(PenstockError):
    pass


class InvalidInput(PenstockError):
    pass


class NoAnswer(PenstockError):
    pass


class UnexpectedAnswer(PenstockError):
    pass


class ServerError(PenstockError):
    pass


class BadRequest(ServerError):
    pass


class Unauthenticated(ServerError):
    pass


class PermissionDenied(ServerError):
    pass


class NotFound(ServerError):
    pass


class SlowSender(ServerError):
    pass


class Conflict(ServerError):
    pass


class TooLarge(ServerError):
    pass


class UnsupportedMedia(ServerError):
    pass


class QuotaExceeded(ServerError):
    pass


class ServerFailed(ServerError):
    pass


class Unsupported(ServerError):
    pass


class Unavailable(ServerError):
    pass


class DeadlineExceeded(ServerError):
    pass


BY_STATUS: dict[int, type[ServerError]] = {
    400: BadRequest,
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    408: SlowSender,
    409: Conflict,
    413: TooLarge,
    415: UnsupportedMedia,
    429: QuotaExceeded,
    500: ServerFailed,
    501: Unsupported,
    503: Unavailable,
    504: DeadlineExceeded,
}
"""Status of an answer → the error raised for it; any other is a plain `ServerError`."""
