"""Credential → Principal: the one verifier, for REST, gRPC and the control API.

A key is `psk_<id>_<secret>`: the id finds the record, the secret (32 random bytes, base64url) proves it.
Only the SHA-256 of the whole key is kept: with 256 bits of entropy a slow password hash would add nothing but CPU.
Everything is refused unless a credential says otherwise.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import NamedTuple

from core.errors import NotFound, PermissionDenied, Unauthenticated

PREDICT, DEPLOY, ADMIN = "predict", "deploy", "admin"
OBSERVE = "observe"

PERMITS: dict[str, frozenset[str]] = {
    PREDICT: frozenset({PREDICT}),
    DEPLOY: frozenset({PREDICT, DEPLOY}),
    ADMIN: frozenset({PREDICT, DEPLOY, ADMIN, OBSERVE}),
    OBSERVE: frozenset({OBSERVE}),
}
"""Role → what it may do."""

CODE = "code"
"""The grant to push formats that carry code."""
GRANTS = frozenset({CODE})


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is asking. `owner` is the tenant that fairness and accounting go by."""

    key_id: str
    name: str
    owner: str
    role: str
    patterns: tuple[str, ...] = ("*",)
    grants: frozenset[str] = frozenset()
    _seen: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)

    def may(self, action: str) -> bool:
        return action in PERMITS[self.role]

    def sees(self, model: str) -> bool:
        """Whether `model` matches one of the key's patterns (`*` and `?` as in a shell)."""
        known = self._seen.get(model)
        if known is None:
            known = any(fnmatchcase(model, pattern) for pattern in self.patterns)
            if len(self._seen) < 1024:
                self._seen[model] = known
        return known

    def require(self, action: str, model: str | None = None) -> None:
        """Raise NotFound for a model the key may not see, PermissionDenied for a role too low."""
        if model is not None and not self.sees(model):
            raise NotFound(f"unknown model {model!r}")
        if not self.may(action):
            raise PermissionDenied(f"the role {self.role!r} does not permit this: it needs {action!r}")


class Credential(NamedTuple):
    """What the verifier needs to know of a stored key. `expires` is Unix time in seconds, 0 = never."""

    principal: Principal
    digest: bytes
    expires: float


class NewKey(NamedTuple):
    key_id: str
    secret: str
    """The whole key as the caller will send it; shown once."""
    digest: bytes


def new_key() -> NewKey:
    key_id = secrets.token_hex(6)
    secret = f"psk_{key_id}_{secrets.token_urlsafe(32)}"
    return NewKey(key_id, secret, digest_of(secret))


def digest_of(key: str | bytes) -> bytes:
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).digest()


MAX_CREDENTIAL = 4096
"""Bytes of a credential that are looked at; longer ones are unknown without being hashed."""


class Verifier:
    """Holds the live keys; `replace` swaps them whole when the repository changes."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._keys: dict[str, Credential] = {}
        self.stamp = object()
        """Another one with each `replace`: what was verified under it holds as long as it does, for lasting keys."""

    def replace(self, keys: Iterable[Credential]) -> None:
        self._keys = {key.principal.key_id: key for key in keys}
        self.stamp = object()

    def lasting(self, principal: Principal) -> bool:
        """Whether the key of a verified principal never expires."""
        return not self._keys[principal.key_id].expires

    def verify(self, credential: bytes | None) -> Principal:
        """The principal of a key, or Unauthenticated. The comparison takes the same time wherever it differs."""
        if not credential:
            raise Unauthenticated("a credential is needed: Authorization: Bearer KEY, or X-API-Key: KEY")
        if len(credential) <= MAX_CREDENTIAL and credential[:4] == b"psk_":
            key = self._keys.get(credential[4:16].decode("latin-1"))
            if key is not None and hmac.compare_digest(key.digest, hashlib.sha256(credential).digest()):
                if key.expires and self._clock() >= key.expires:
                    raise Unauthenticated("the key has expired")
                return key.principal
        raise Unauthenticated("the key is unknown or revoked")


def credential_from(authorization: bytes | None, api_key: bytes | None) -> bytes | None:
    """The key out of the two headers: `Authorization: Bearer KEY` first, then `X-API-Key: KEY`."""
    if authorization is not None and authorization[:7].lower() == b"bearer ":
        return authorization[7:].strip()
    return api_key
