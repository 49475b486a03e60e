"""`penstock status`: what is made of the answer, and that it goes on until it is stopped."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from penstock.commands.status import headline, places, reasons_of, warnings

from tests.client.fake import FakeServer, Request, Scripted, replica_record, status_record

WITHIN_S = 30.0


def version(*replicas: dict[str, Any], **fields: Any) -> dict[str, Any]:
    made: dict[str, Any] = status_record()["models"][0]["versions"][0]
    return {**made, "where": list(replicas), **fields}


def test_replicas_of_one_device_stand_together() -> None:
    """Their states counted, the means of their times, the longest of all."""
    there = [
        replica_record(),
        replica_record(queue_wait_ms=4.0, service_ms=8.0, longest_ms=9.0, busy=1.0),
        replica_record(device="cpu", state="STARTING", queue_wait_ms=0.0, service_ms=None, longest_ms=None, busy=0.0),
    ]
    assert places("m", version(*there)) == [
        ("m 2", "h1", "cuda:0", "2 ready", "3 ms", "6 ms", "9 ms", "75%"),
        ("m 2", "h1", "cpu", "1 starting", "", "", "", "0%"),
    ]
    assert places("m", version()) == []


def test_a_reason_is_told_once() -> None:
    """The version's own, then those of its replicas."""
    failed = replica_record(state="FAILED", reason="no device")
    assert reasons_of(version(failed, failed, replica_record(), reason="no such op")) == ["no such op", "no device"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [({}, []), ({"repository": False}, ["repository"]), ({"listening": False}, ["broker"])],
)
def test_what_cannot_be_known_is_said(fields: dict[str, Any], words: list[str]) -> None:
    """A silent broker is no empty fleet, an absent repository no certainty."""
    said = warnings(status_record(**fields))
    assert len(said) == len(words)
    assert all(word in sentence for word, sentence in zip(words, said, strict=True))


def test_the_headline_counts() -> None:
    """Also where there is nothing."""
    assert headline(status_record()) == "1 model, 1 version, 1 gateway; replicas ready: 1; repository at revision 42"
    assert headline(status_record(models=[], gateways=[])).startswith("0 models, 0 versions, 0 gateways; replicas r")


def start(*words: str) -> list[str]:
    return [sys.executable, "-c", "from penstock.cli import main; main()", "status", "--every", "0.1", *words]


@contextmanager
def killed(process: subprocess.Popen[Any]) -> Iterator[None]:
    """In the end, whatever came before: it would go on for ever."""
    try:
        yield
    finally:
        process.kill()


def test_watching_goes_on_in_place_until_it_is_interrupted(server: FakeServer, home: Path) -> None:
    """Each look replaces the last; a server that does not answer is told of and asked again; Ctrl-C ends it with 0."""
    (home / "client.toml").write_text(f'url = "{server.url}"\napi_key = "{server.key}"\n')

    def away(request: Request) -> None:
        if len(server.requests) == 2:
            server.answers("GET /api/v1/status", *[Scripted(500, {"error": "the disk is gone"})] * 2)

    server.after = away
    leader, follower = pty.openpty()
    shown = b""
    with subprocess.Popen(start("--watch"), stdout=follower, stderr=follower, stdin=follower) as process:
        os.close(follower)
        with killed(process):
            shown = read_until(leader, lambda text: b"the disk is gone" in text and len(server.requests) > 6)
            process.send_signal(signal.SIGINT)
            assert process.wait(WITHIN_S) == 0
    os.close(leader)
    assert shown.count(b"gateway-1") > 1
    assert re.search(rb"\x1b\[\d*A", shown), "nothing went back up to write over what was there"


def read_until(terminal: int, found: Callable[[bytes], bool]) -> bytes:
    deadline, text = time.monotonic() + WITHIN_S, b""
    while not found(text):
        assert time.monotonic() < deadline, text
        if select.select([terminal], [], [], 0.1)[0]:
            text += os.read(terminal, 65536)
    return text


def test_watching_for_programs_is_a_line_a_look(server: FakeServer, home: Path) -> None:
    """Whole JSON, one object a line, as soon as it is there."""
    (home / "client.toml").write_text(f'url = "{server.url}"\napi_key = "{server.key}"\n')
    with subprocess.Popen(start("--watch", "--json"), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        with killed(process):
            lines = [process.stdout.readline() for _ in range(3)]
            process.send_signal(signal.SIGINT)
            assert process.wait(WITHIN_S) == 0
    assert [json.loads(line)["revision"] for line in lines] == [42, 42, 42]
