"""The body of a push, piece by piece, without any server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect

from control import push
from control.push import Pace, Sender, Upload, boundary_of, check_length
from core.errors import InvalidRequest, PenstockError, SlowSender, TooLarge, UnsupportedMedia

BOUNDARY = b"xyz"


def part(name: str, content: bytes, *headers: str) -> bytes:
    lines = [f'Content-Disposition: form-data; name="{name}"; filename="../../etc/passwd"', *headers]
    return b"--xyz\r\n" + "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + content + b"\r\n"


END = b"--xyz--\r\n"
WHOLE = part("manifest", b"{}") + part("artifact", b"weights") + END


async def pieces(body: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(body), size):
        yield body[at : at + size]


async def read(body: bytes, size: int = 1 << 16) -> tuple[bytes, bytes]:
    upload = Upload(pieces(body, size), BOUNDARY)
    manifest = await upload.manifest()
    return manifest, b"".join([piece async for piece in upload.artifact()])


@given(st.binary(max_size=200) | st.text("\r\n-xyz", max_size=60).map(str.encode), st.integers(1, 300))
def test_a_push_comes_through_however_it_is_cut(artifact: bytes, size: int) -> None:
    """Also content that looks almost like a boundary."""
    if b"\r\n--xyz" in b"\r\n" + artifact:
        return
    body = part("manifest", b'{"format": "onnx"}') + part("artifact", artifact, "Content-Type: x/y") + END
    assert asyncio.run(read(body, size)) == (b'{"format": "onnx"}', artifact)


MALFORMED = {
    "nothing": b"",
    "no boundary": b"hello",
    "only the end": END,
    "no artifact": part("manifest", b"{}") + END,
    "no manifest": part("artifact", b"weights") + END,
    "the wrong order": part("artifact", b"weights") + part("manifest", b"{}") + END,
    "twice the manifest": part("manifest", b"{}") + part("manifest", b"{}") + END,
    "a third part": part("manifest", b"{}") + part("artifact", b"w") + part("more", b"") + END,
    "no name": b"--xyz\r\nContent-Type: x/y\r\n\r\n{}\r\n" + END,
    "no headers": b"--xyz\r\n\r\n{}\r\n" + END,
    "cut off in the manifest": WHOLE[:70],
    "cut off in the artifact": WHOLE[:-15],
    "cut off before the end": WHOLE[:-9],
    "endless headers": b"--xyz\r\n" + b"A: b\r\n" * 10_000,
    "an endless header": b"--xyz\r\nA: " + b"b" * 100_000,
}


@pytest.mark.parametrize("case", MALFORMED)
@pytest.mark.parametrize("size", [7, 1 << 16])
async def test_a_malformed_push_is_refused(case: str, size: int) -> None:
    """InvalidRequest, however it is cut; never a push that looks whole."""
    with pytest.raises(InvalidRequest, match="push"):
        await read(MALFORMED[case], size)


@given(st.binary(max_size=400).map(lambda noise: WHOLE[:90] + noise), st.integers(1, 100))
def test_noise_is_refused_or_read_never_a_defect(body: bytes, size: int) -> None:
    """Whatever comes, the answer is an error of the domain."""
    with contextlib.suppress(InvalidRequest):
        asyncio.run(read(body, size))


async def test_a_manifest_is_bounded() -> None:
    """Beyond its limit it is not kept, however much follows."""

    async def endless() -> AsyncIterator[bytes]:
        yield part("manifest", b"")[:-2]
        while True:
            yield bytes(1 << 16)

    with pytest.raises(TooLarge, match="100000"):
        await Upload(endless(), BOUNDARY, 100_000).manifest()


async def test_the_artifact_is_handed_on_as_it_comes() -> None:
    """Nothing more is read from the sender before what came was taken."""
    taken = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal taken
        async for piece in pieces(part("manifest", b"{}") + part("artifact", bytes(1 << 20)) + END, 1 << 14):
            taken += len(piece)
            yield piece

    upload = Upload(counted(), BOUNDARY)
    await upload.manifest()
    got = 0
    async for piece in upload.artifact():
        got += len(piece)
        assert taken - got < 1 << 15
    assert got == 1 << 20


@pytest.mark.parametrize(
    ("content_type", "encoding", "error"),
    [
        ("", "", UnsupportedMedia),
        ("application/json", "", UnsupportedMedia),
        ("application/x-pickle", "", UnsupportedMedia),
        ("multipart/mixed; boundary=a", "", UnsupportedMedia),
        ("multipart/form-data", "", InvalidRequest),
        ("multipart/form-data; boundary=", "", InvalidRequest),
        (f"multipart/form-data; boundary={'a' * 71}", "", InvalidRequest),
        ("multipart/form-data; boundary=a", "gzip", UnsupportedMedia),
    ],
)
def test_what_is_no_form_is_refused_by_its_headers(
    content_type: str, encoding: str, error: type[PenstockError]
) -> None:
    """415 for another medium, 400 for one without boundary."""
    with pytest.raises(error):
        boundary_of(content_type, encoding)
    assert boundary_of('Multipart/Form-Data; boundary="a b"', "identity") == b"a b"


def test_a_declared_length_beyond_the_limit_is_refused_at_once() -> None:
    """With room for the manifest; what is no number is left to the count."""
    check_length({"content-length": str(150 + push.OVERHEAD)}, 100, 50)
    for fine in ("", "x", "-1"):
        check_length({"content-length": fine}, 100)
    for large in (str(151 + push.OVERHEAD), "9" * 400):
        with pytest.raises(TooLarge):
            check_length({"content-length": large}, 100, 50)


# --- the pace -----------------------------------------------------------------------------------------------------


def test_a_sender_that_keeps_the_rate_is_never_cut_off() -> None:
    """Window after window; a burst does not pay for the window after it."""
    pace = Pace(rate=100, window=10.0)
    for _ in range(50):
        pace.step(500, 5.0)
    pace.step(10**9, 10.0)
    with pytest.raises(SlowSender, match="100 bytes a second"):
        pace.step(999, 10.0)


def test_a_short_upload_may_be_slow() -> None:
    """Nothing is asked before the first window is over."""
    pace = Pace(rate=100, window=10.0)
    pace.step(1, 9.9)
    assert pace.left == pytest.approx(0.1)
    with pytest.raises(SlowSender):
        pace.step(0, 0.1)


def messages(*bodies: bytes, stall: bool = False) -> Any:
    """A `receive` that gives these pieces, then stalls or ends."""
    rest = list(bodies)

    async def receive() -> dict[str, Any]:
        if not rest and stall:
            await asyncio.Event().wait()
        body = rest.pop(0)
        return {"type": "http.request", "body": body, "more_body": stall or bool(rest)}

    return receive


async def test_a_silent_sender_is_cut_off_when_the_window_ends() -> None:
    """It is not waited for any longer than that."""
    chunks = Sender(messages(b"abc", stall=True), 1000, 0.05).chunks()
    assert await anext(chunks) == b"abc"
    with pytest.raises(SlowSender):
        await asyncio.wait_for(anext(chunks), 5)


async def test_time_that_the_reader_takes_is_not_the_senders() -> None:
    """A disk slower than the minimum rate cuts nobody off."""
    got = []
    async for chunk in Sender(messages(b"a", b"b", b"c"), 10**9, 0.05).chunks():
        await asyncio.sleep(0.06)
        got.append(chunk)
    assert got == [b"a", b"b", b"c"]


async def test_a_sender_that_leaves_is_told_from_one_that_ends() -> None:
    """ClientDisconnect, and nothing more is drained."""

    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    sender = Sender(gone, 1)
    with pytest.raises(ClientDisconnect):
        await anext(sender.chunks())
    await sender.drain()


async def test_what_a_refused_sender_still_brings_is_drained_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many bytes, so many seconds; nothing is asked for after the end."""
    monkeypatch.setattr(push, "LEFTOVER", 100)
    monkeypatch.setattr(push, "LEFTOVER_S", 0.05)
    short = Sender(messages(b"a", b"b"), 1)
    await short.drain()
    assert not short.more
    await short.drain()
    for receive in (messages(*[bytes(60)] * 5), messages(b"a", stall=True)):
        long = Sender(receive, 1)
        async with asyncio.timeout(5):
            await long.drain()
        assert long.more
