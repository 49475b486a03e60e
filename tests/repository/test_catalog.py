"""The catalog: everything at one revision, sorted for those who look things up."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from core.identity import Principal, digest_of
from repository.catalog import Catalog, catalog
from repository.records import Alias, ApiKey, Deployment
from tests.repository.scripted import a_state, a_version


def alias(name: str, version: int, model: str = "m") -> Alias:
    return Alias(model=model, alias=name, version=version)


MADE = catalog(
    7,
    [a_version("m", 2), a_version("n", 1), a_version("m", 10), a_version("m", 1)],
    [a_state("m", 1, "READY"), a_state("m", 2, "READY"), a_state("m", 10, "UNAVAILABLE"), a_state("m", 3, "READY")],
    [alias("old", 1), alias("lost", 9)],
)


def test_versions_are_ascending_numbers() -> None:
    """10 comes after 2, whatever order the store gives."""
    assert list(MADE.versions["m"]) == [1, 2, 10]
    assert MADE.highest("m") == 10
    assert MADE.highest("unknown") is None
    assert [v.key for v in MADE.all_versions()] == ["m/1", "m/2", "m/10", "n/1"]


def test_what_belongs_to_a_version_that_is_gone_is_left_out() -> None:
    """A crash between the deletion of a version and of its state misleads nobody."""
    assert ("m", 3) not in MADE.states
    assert MADE.aliases == {"m": {"old": 1}}
    assert MADE.all_aliases() == [alias("old", 1)]


def test_states_are_unknown_until_somebody_says() -> None:
    """n/1 was never hosted."""
    assert MADE.state("m", 2) == "READY"
    assert MADE.ready("m", 2)
    assert not MADE.ready("m", 10)
    assert MADE.state("n", 1) == "UNKNOWN"


def test_a_name_resolves_to_a_number() -> None:
    """Digits, aliases; without one the highest ready, or the champion where it is set."""
    assert MADE.resolve("m", "10") == 10
    assert MADE.resolve("m", "3") is None
    assert MADE.resolve("m", "old") == 1
    assert MADE.resolve("m", "lost") is None
    assert MADE.resolve("m") == 2
    assert MADE.resolve("n") == 1
    assert MADE.resolve("unknown") is None
    crowned = catalog(8, MADE.all_versions(), MADE.states.values(), [alias("champion", 10)])
    assert crowned.resolve("m") == 10
    assert crowned.aliases["m"] == {"champion": 10}


def test_a_model_without_a_deployment_has_the_defaults() -> None:
    """One replica; what was set holds as long as the model is there."""
    set_ = [Deployment(model="m", replicas=2, max_replicas=8), Deployment(model="lost", replicas=3, max_replicas=3)]
    made = catalog(8, MADE.all_versions(), deployments=set_)
    assert made.deployment("m") == set_[0]
    assert made.deployment("n") == Deployment(model="n", replicas=1, max_replicas=1, cpus=0.1, gpus=0.0)
    assert list(made.deployments) == ["m"]


def test_credentials_are_those_of_keys_not_revoked() -> None:
    """With everything that a verifier asks for."""
    key = ApiKey(
        key_id="0123456789ab",
        name="n",
        owner="o",
        role="deploy",
        patterns=("a*",),
        grants=("code",),
        digest=digest_of("psk").hex(),
        created=1.0,
        expires=9.0,
    )
    revoked = ApiKey(key_id="b", name="n", owner="o", role="admin", digest="00" * 32, created=1.0, revoked=True)
    (credential,) = catalog(1, keys=[key, revoked]).credentials()
    assert credential.principal == Principal("0123456789ab", "n", "o", "deploy", ("a*",), frozenset({"code"}))
    assert (credential.digest, credential.expires) == (digest_of("psk"), 9.0)


@pytest.mark.parametrize("wrong", [{"digest": "zz"}, {"role": "god"}], ids=str)
def test_a_key_that_cannot_be_read_lets_nobody_in_and_stands_in_nobodys_way(wrong: dict[str, str]) -> None:
    """The others are as ever; it is named in the log once."""
    good = ApiKey(key_id="good", name="n", owner="o", role="predict", digest="00" * 32, created=1.0)
    bad = replace(good, key_id=f"bad-{'-'.join(wrong)}", **wrong)
    with capture_logs() as logs:
        for _ in range(3):
            (credential,) = catalog(1, keys=[bad, good]).credentials()
            assert credential.principal.key_id == "good"
    assert [(line["event"], line["key_id"]) for line in logs] == [("key_unreadable", bad.key_id)]


def test_an_empty_catalog_answers_everything() -> None:
    """Before the first read nothing is there, and nothing raises."""
    empty = Catalog()
    assert empty.revision == -1
    assert (empty.resolve("m"), empty.highest("m"), empty.credentials()) == (None, None, [])
