"""Credential → principal: who is let in, and how far."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import NotFound, PermissionDenied, Unauthenticated
from core.identity import (
    ADMIN,
    DEPLOY,
    MAX_CREDENTIAL,
    PERMITS,
    PREDICT,
    Credential,
    Principal,
    Verifier,
    credential_from,
    digest_of,
    new_key,
)


def principal(role: str = PREDICT, *patterns: str, key_id: str = "k") -> Principal:
    return Principal(key_id, "name", "owner", role, patterns or ("*",))


def verifier(now: float = 0.0, expires: float = 0.0) -> tuple[Verifier, bytes]:
    """A verifier that knows one key, and that key."""
    made = new_key()
    verifier = Verifier(lambda: now)
    verifier.replace([Credential(principal(key_id=made.key_id), made.digest, expires)])
    return verifier, made.secret.encode()


def test_a_known_key_is_its_principal() -> None:
    """And no other's."""
    known, secret = verifier()
    assert known.verify(secret).name == "name"


def test_a_new_key_has_256_bits_and_is_never_the_same() -> None:
    """Only its digest is to be kept."""
    made = {new_key().secret for _ in range(100)}
    assert len(made) == 100
    assert all(len(secret.split("_", 2)[2]) == 43 for secret in made)
    key = new_key()
    assert key.digest == digest_of(key.secret) == digest_of(key.secret.encode())


def test_no_credential_says_how_to_send_one() -> None:
    """Neither nothing nor an empty header."""
    known, _ = verifier()
    for absent in (None, b""):
        with pytest.raises(Unauthenticated, match="Authorization: Bearer KEY"):
            known.verify(absent)


@given(st.binary(max_size=100) | st.integers(0, 90).map(lambda cut: b"psk_0123456789ab_" + b"A" * cut))
def test_nothing_else_is_let_in(credential: bytes) -> None:
    """Whatever bytes are sent in place of a key."""
    known, _ = verifier()
    with pytest.raises(Unauthenticated):
        known.verify(credential)


def test_every_part_of_a_key_counts() -> None:
    """One changed, lost or added byte anywhere is another key."""
    known, secret = verifier()
    for at in range(len(secret)):
        wrong = bytes([secret[at] ^ 1])
        for changed in (secret[:at] + wrong + secret[at + 1 :], secret[:at] + secret[at + 1 :]):
            with pytest.raises(Unauthenticated):
                known.verify(changed)
    for longer in (secret + b"\x00", secret + b"\n", b" " + secret, secret + secret, secret + b"A" * MAX_CREDENTIAL):
        with pytest.raises(Unauthenticated):
            known.verify(longer)


def test_the_id_of_one_key_does_not_open_with_the_secret_of_another() -> None:
    """The whole key is proved, not its last part."""
    first, second = new_key(), new_key()
    known = Verifier()
    known.replace([Credential(principal(key_id=k.key_id), k.digest, 0.0) for k in (first, second)])
    mixed = first.secret[:17] + second.secret[17:]
    with pytest.raises(Unauthenticated):
        known.verify(mixed.encode())


@pytest.mark.parametrize(("now", "alive"), [(9.9, True), (10.0, False), (11.0, False)])
def test_a_key_expires_on_the_second(now: float, alive: bool) -> None:
    """And says that it has."""
    known, secret = verifier(now, expires=10.0)
    if alive:
        assert known.verify(secret)
    else:
        with pytest.raises(Unauthenticated, match="expired"):
            known.verify(secret)


def test_a_key_that_is_taken_away_is_unknown() -> None:
    """As soon as the keys are replaced."""
    known, secret = verifier()
    known.replace([])
    with pytest.raises(Unauthenticated, match="unknown or revoked"):
        known.verify(secret)


@pytest.mark.parametrize(
    ("authorization", "api_key", "found"),
    [
        (b"Bearer abc", None, b"abc"),
        (b"bearer  abc ", None, b"abc"),
        (b"Bearer abc", b"def", b"abc"),
        (None, b"def", b"def"),
        (b"Basic abc", None, None),
        (b"Basic abc", b"def", b"def"),
        (b"Bearer", None, None),
        (b"Bearer ", None, b""),
        (None, None, None),
    ],
)
def test_where_a_credential_stands(authorization: bytes | None, api_key: bytes | None, found: bytes | None) -> None:
    """Authorization: Bearer first, then X-API-Key; another scheme is none."""
    assert credential_from(authorization, api_key) == found


def test_a_role_permits_what_stands_in_the_table() -> None:
    """Each role includes the one above it, but for the one that only looks on."""
    assert {role: sorted(actions) for role, actions in PERMITS.items()} == {
        "predict": ["predict"],
        "deploy": ["deploy", "predict"],
        "admin": ["admin", "deploy", "observe", "predict"],
        "observe": ["observe"],
    }
    for role, permitted in PERMITS.items():
        for action in (PREDICT, DEPLOY, ADMIN):
            if action in permitted:
                principal(role).require(action)
            else:
                with pytest.raises(PermissionDenied, match=action):
                    principal(role).require(action)


def test_patterns_say_which_models_are_seen() -> None:
    """By case, with * and ?; asking often changes nothing."""
    who = principal(PREDICT, "team-*", "iris", "v?")
    for _ in range(2):
        assert [
            model for model in ("team-a", "team-", "iris", "v1", "v12", "Iris", "team", "x") if who.sees(model)
        ] == [
            "team-a",
            "team-",
            "iris",
            "v1",
        ]
    for number in range(5000):
        assert who.sees(f"team-{number}")
        assert not who.sees(f"other-{number}")


def test_what_is_not_seen_is_not_found_before_it_is_forbidden() -> None:
    """A key learns nothing of models outside its patterns, not even that its role would be too low."""
    with pytest.raises(NotFound, match="unknown model 'churn'"):
        principal(PREDICT, "iris").require(DEPLOY, "churn")
    with pytest.raises(PermissionDenied):
        principal(PREDICT, "iris").require(DEPLOY, "iris")
