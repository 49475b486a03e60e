"""Where the server is and which key it gets."""

from __future__ import annotations

from pathlib import Path

import pytest
from penstock.config import read, server_of
from penstock.errors import NotConfigured

FILE = {
    "url": "http://127.0.0.1:8080",
    "grpc": "127.0.0.1:8081",
    "control": "http://127.0.0.1:9090",
    "api_key": "file-key",
}
OTHER = "http://other.example:8080"


def write(home: Path, **values: str) -> None:
    (home / "client.toml").write_text("".join(f'{name} = "{value}"\n' for name, value in values.items()))


# given, environment, file → data url, its key, control url, its key
PRECEDENCE = [
    pytest.param({}, {}, FILE, FILE["url"], "file-key", FILE["control"], "file-key", id="the file alone"),
    pytest.param(
        {}, {"API_KEY": "env-key"}, FILE, FILE["url"], "env-key", FILE["control"], "env-key", id="a key of its own"
    ),
    pytest.param({}, {"URL": OTHER, "API_KEY": "e"}, FILE, OTHER, "e", OTHER, "e", id="another server with its key"),
    pytest.param({}, {"URL": OTHER}, FILE, OTHER, None, OTHER, None, id="another server, the file's key stays"),
    pytest.param(
        {}, {"URL": FILE["url"] + "/"}, FILE, FILE["url"], "file-key", FILE["control"], "file-key", id="the same server"
    ),
    pytest.param(
        {},
        {"URL": "http://127.0.0.1:8081"},
        FILE,
        "http://127.0.0.1:8081",
        None,
        "http://127.0.0.1:8081",
        None,
        id="another port is another server",
    ),
    pytest.param(
        {},
        {"URL": "https://127.0.0.1:8080"},
        FILE,
        "https://127.0.0.1:8080",
        None,
        "https://127.0.0.1:8080",
        None,
        id="another scheme is another server",
    ),
    pytest.param({}, {"CONTROL": OTHER}, FILE, FILE["url"], "file-key", OTHER, None, id="another control alone"),
    pytest.param(
        {},
        {"CONTROL": OTHER, "API_KEY": "e"},
        FILE,
        FILE["url"],
        "e",
        OTHER,
        "e",
        id="another control and a key for both",
    ),
    pytest.param({"url": OTHER}, {}, FILE, OTHER, None, OTHER, None, id="a call to another server"),
    pytest.param({"url": OTHER, "api_key": "c"}, {}, FILE, OTHER, "c", OTHER, "c", id="a call with its key"),
    pytest.param({"url": OTHER}, {"API_KEY": "e"}, {}, OTHER, "e", OTHER, "e", id="address in the call, key around it"),
    pytest.param(
        {"url": OTHER}, {"URL": FILE["url"], "API_KEY": "e"}, {}, OTHER, None, OTHER, None, id="a key meant for another"
    ),
    pytest.param({}, {"URL": OTHER}, {}, OTHER, None, OTHER, None, id="no key at all"),
]


@pytest.mark.parametrize(("given", "environ", "file", "url", "key", "control", "control_key"), PRECEDENCE)
def test_nearest_setting_counts_and_keys_stay_with_their_servers(
    home: Path,
    given: dict[str, str],
    environ: dict[str, str],
    file: dict[str, str],
    url: str,
    key: str | None,
    control: str,
    control_key: str | None,
) -> None:
    """Arguments, then environment, then file; a key goes to no server but those that its own place names."""
    if file:
        write(home, **file)
    variables = {f"PENSTOCK_{name}": value for name, value in environ.items()} | {"PENSTOCK_HOME": str(home)}
    config = read(**given, environ=variables)
    assert (config.data.url, config.data.key) == (url, key)
    assert (config.control.url, config.control.key) == (control, control_key)


def test_missing_address_says_what_to_set(home: Path) -> None:
    """Nothing configured: one sentence with both ways out."""
    with pytest.raises(NotConfigured, match=r"PENSTOCK_URL and PENSTOCK_API_KEY.*client\.toml.*penstock up"):
        read(environ={"PENSTOCK_HOME": str(home)})


def test_withheld_key_says_whose_it_is(home: Path) -> None:
    """The reason for going without a key names the server that it is meant for, and what to set."""
    write(home, **FILE)
    config = read(environ={"PENSTOCK_HOME": str(home), "PENSTOCK_URL": OTHER})
    assert "is meant for http://127.0.0.1:8080" in config.data.missing
    assert "set PENSTOCK_API_KEY" in config.data.missing
    assert "file-key" not in config.data.missing


def test_keys_are_not_shown(home: Path) -> None:
    """No repr spells a key."""
    write(home, **FILE)
    assert "file-key" not in repr(read(environ={"PENSTOCK_HOME": str(home)}))


def test_grpc_address_is_read(home: Path) -> None:
    """For clients of other protocols the SDK tells where gRPC is."""
    write(home, **FILE)
    assert read(environ={"PENSTOCK_HOME": str(home)}).grpc == "127.0.0.1:8081"
    assert read(environ={"PENSTOCK_HOME": str(home), "PENSTOCK_GRPC": "h:1"}).grpc == "h:1"


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8080",
        "localhost",
        "ftp://h",
        "http://",
        "http://h:99999",
        "http://h:x",
        "http://127.0.0.1:8080@evil.example/",
        "http://user:word@h",
        "http://h/?a=b",
        "http://h#f",
    ],
)
def test_addresses_that_are_none_are_refused(home: Path, url: str) -> None:
    """A credential in an address, a missing scheme or a bad port: refused before anything is sent."""
    with pytest.raises(NotConfigured, match="url from the environment"):
        read(environ={"PENSTOCK_HOME": str(home), "PENSTOCK_URL": url, "PENSTOCK_API_KEY": "k"})


@pytest.mark.parametrize("content", ["url = ", "\x00", "url = 3", 'api_key = ["k"]'])
def test_damaged_file_is_named(home: Path, content: str) -> None:
    """A client.toml that cannot be read, or holds no text where one belongs, is a sentence with its path."""
    (home / "client.toml").write_text(content)
    with pytest.raises(NotConfigured, match=r"client\.toml"):
        read(environ={"PENSTOCK_HOME": str(home)})


@pytest.mark.parametrize("key", ["a\nX-Other: b", "a b", "schlüssel", "a\r"])
def test_keys_that_would_break_a_header_are_refused(home: Path, key: str) -> None:
    """A line break or blank never reaches the wire."""
    with pytest.raises(NotConfigured, match="no key has"):
        read("http://h", key, environ={"PENSTOCK_HOME": str(home)})


def test_addresses_are_compared_by_scheme_host_and_port() -> None:
    """Letter case and a spelt-out default port make no other server."""
    assert server_of("http://Host/") == server_of("http://host:80")
    assert server_of("https://host") != server_of("http://host:443")
