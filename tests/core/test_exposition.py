"""`GET /metrics`: open on loopback, with a key elsewhere, found by Prometheus, in nobody's way."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core import exposition, meters
from core.errors import Unavailable
from core.exposition import Exposition
from core.identity import DEPLOY, OBSERVE, Credential, Principal, Verifier, new_key
from core.settings import Settings

Start = Callable[..., Exposition]


@pytest.fixture
def first_port() -> int:
    """One that is free, with free ones behind it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return min(int(probe.getsockname()[1]), 65_000)


@pytest.fixture
def start(tmp_path: Path, first_port: int) -> Iterator[Start]:
    started: list[Exposition] = []

    def begin(host: str = "127.0.0.1", port: int | None = None, find: Callable[[], Verifier] = Verifier) -> Exposition:
        settings = Settings(home=tmp_path, metrics_host=host, metrics_port=first_port if port is None else port)
        served = Exposition(meters.registry(), settings, "test", find)
        served.start()
        started.append(served)
        return served

    yield begin
    for each in started:
        each.close()


def away() -> Verifier:
    raise Unavailable("nobody knows the keys now")


def get(port: int, path: str = "/metrics", method: str = "GET", **headers: str) -> tuple[int, str]:
    url = f"http://127.0.0.1:{port}{path}"
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_on_loopback_it_is_open(start: Start) -> None:
    status, body = get(start().port)
    assert status == 200
    assert "process_cpu_seconds_total" in body


def test_whoever_asks_is_answered(start: Start) -> None:
    """HEAD, and an Accept header of nonsense; what cannot be read at all is told so, and not by whose Python."""
    port = start().port
    assert get(port, method="HEAD") == (200, "")
    for version in ("zz", "", "1.0.0", "9" * 5000):
        assert get(port, Accept=f"application/openmetrics-text;version={version}")[0] == 200
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"GET /metrics nonsense HTTP/1.1\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert b"Python" not in answer
    assert b"<" not in answer


def test_elsewhere_it_needs_a_key_of_role_observe(start: Start) -> None:
    keys = {}
    credentials = []
    for role in (OBSERVE, DEPLOY):
        keys[role] = made = new_key()
        credentials.append(Credential(Principal(made.key_id, role, role, role), made.digest, 0))
    verifier = Verifier()
    verifier.replace(credentials)
    port = start("0.0.0.0", find=lambda: verifier).port
    assert get(port)[0] == 401
    assert get(port, Authorization="Bearer psk_none_of_ours")[0] == 401
    assert get(port, Authorization=f"Bearer {keys[DEPLOY].secret}")[0] == 403
    status, body = get(port, Authorization=f"Bearer {keys[OBSERVE].secret}")
    assert (status, "process_cpu_seconds_total" in body) == (200, True)
    assert get(port, **{"X-API-Key": keys[OBSERVE].secret})[0] == 200


def test_elsewhere_a_process_without_keys_serves_nobody(start: Start) -> None:
    port = start("0.0.0.0", find=away).port
    assert get(port)[0] == 401
    assert get(port, **{"X-API-Key": new_key().secret})[0] == 503


def test_there_is_nothing_else(start: Start) -> None:
    port = start().port
    assert get(port, "/")[0] == 404
    assert get(port, "/metrics/../../etc/passwd")[0] == 404
    assert get(port, method="POST")[0] == 405


def test_each_process_has_a_port_and_says_so(start: Start, tmp_path: Path, first_port: int) -> None:
    """The next takes the next free port."""
    first, second = start(), start()
    assert first_port <= first.port < second.port
    (file,) = (tmp_path / "metrics").glob("*.json")  # one a process, and this is one
    assert json.loads(file.read_text()) == [
        {"targets": [f"127.0.0.1:{second.port}"], "labels": {"process": "test"}},
    ]
    second.close()
    assert not file.exists()


def test_what_the_dead_left_is_swept(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()
    dead, alive = folder / "gateway-999999999.json", folder / f"gateway-{os.getppid()}.json"
    for file in (dead, alive):
        file.write_text("[]")
    start()
    assert not dead.exists()
    assert alive.exists()


def test_without_a_free_port_the_process_goes_on(
    start: Start, monkeypatch: pytest.MonkeyPatch, first_port: int
) -> None:
    monkeypatch.setattr(exposition, "PORTS", 1)
    with socket.create_server(("127.0.0.1", first_port)):
        assert start().port == 0


def test_none_may_be_wanted(start: Start, tmp_path: Path) -> None:
    assert start(port=0).port == 0
    assert not (tmp_path / "metrics").exists()


def test_who_sends_nothing_is_cut_off(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition._Handler, "timeout", 0.2)
    with socket.create_connection(("127.0.0.1", start().port), timeout=5) as silent:
        silent.sendall(b"GET /met")
        assert silent.recv(100) == b""


def threads() -> list[threading.Thread]:
    """Those that serve a connection."""
    return [thread for thread in threading.enumerate() if "process_request_thread" in thread.name]


def ended() -> bool:
    """Whether they all end soon."""
    for thread in threads():
        thread.join(20)
    return not threads()


def test_strangers_who_hold_their_places_keep_no_scrape_away(start: Start) -> None:
    """Far more than there are places, all of them there to stay: who asks is answered, each time. Nor do they make
    threads without end."""
    port = start().port
    with contextlib.ExitStack() as stack:
        for _ in range(10 * exposition.AT_ONCE):
            stranger = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
            stranger.sendall(b"GET /met")
            assert len(threads()) <= exposition.AT_ONCE + exposition.ENDING
        for _ in range(3):
            assert get(port)[0] == 200
    assert ended()


def test_who_has_asked_keeps_his_place(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither strangers nor others who ask take it from him; with no place left the next one is cut off."""
    monkeypatch.setattr(exposition, "AT_ONCE", 2)
    begun, go_on = threading.Semaphore(0), threading.Event()

    def held(*_: object) -> list[bytes]:
        begun.release()
        go_on.wait(30)
        return []

    served = start()
    monkeypatch.setattr(served, "_app", held)
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            asking = stack.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=5))
            asking.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert begun.acquire(timeout=20)
        third = stack.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=5))
        with contextlib.suppress(ConnectionResetError):
            assert third.recv(100) == b""
        assert len(threads()) == 2
        go_on.set()
    assert ended()


def test_places_are_taken_only_while_those_who_lost_them_end() -> None:
    """Each that was cut off has a thread until it has ended: so many, then the next is turned away."""
    guests = exposition._Guests()
    with contextlib.ExitStack() as stack:
        here = [stack.enter_context(socket.socket()) for _ in range(exposition.AT_ONCE + exposition.ENDING + 2)]
        assert [guests.admitted(each) for each in here[:-2]] == [True] * (len(here) - 2)
        assert not guests.admitted(here[-2])
        guests.left(here[0])  # cut off long ago
        assert guests.admitted(here[-1])


def test_without_a_key_a_request_is_a_strangers(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it needs one: a wrong key buys no place."""
    monkeypatch.setattr(exposition, "AT_ONCE", 1)
    asked: list[socket.socket] = []
    monkeypatch.setattr(exposition._Guests, "asked", lambda _, connection: asked.append(connection))
    port = start("0.0.0.0").port
    assert get(port, Authorization="Bearer psk_none_of_ours")[0] == 401
    assert asked == []
