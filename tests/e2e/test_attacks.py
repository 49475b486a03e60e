"""Every attack is repelled by a real server, and gets through where its one defence is taken away.

The second half is what makes the first worth something: an attack that no missing guard could ever let through
would prove nothing. It needs a server in this process, to take a guard away: that is the embedded one. The first half
runs against gateways of the production shape as well, but for `OF_LOADING`.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import re
import subprocess
import sys
import types
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import psutil
import pytest
import structlog
from tritonclient.grpc import service_pb2

from core import logs
from core.settings import MAX_TENSORS, Settings
from gateway.http_turn import Turn
from tests.e2e import attacks
from tests.e2e.attacks import LIMITS, Attack, Target
from tests.e2e.inside import inside
from tests.running import EMBEDDED

LAX = 10**9


class Weak(NamedTuple):
    """A server without one of its guards: other settings, other functions in the place of its own ("module:name")."""

    attack: Attack
    settings: dict[str, Any] = {}
    patches: dict[str, Any] = {}


def _trusting_elements(shape: tuple[int, ...], name: str) -> int:
    return int(np.prod(np.array(shape, dtype=np.float64).clip(0, 8)))


def _null_for_nan(output: Any) -> bytes:
    return orjson.dumps(np.frombuffer(output.data, np.float32), option=orjson.OPT_SERIALIZE_NUMPY)


def _any_type(self: Any, mould: Any) -> Any:
    from gateway.codec import rest

    return rest.decode(self.body, None, mould.signature, self.connection.limits)


def _whole_message(body: bytes, most: int) -> Any:
    from gateway.codec.protobuf import Message

    head = service_pb2.ModelInferRequest.FromString(body)
    return Message(head, [memoryview(each) for each in head.raw_input_contents])


_counted = importlib.import_module("gateway.codec.protobuf").parse


def _uncounted(body: bytes, most: int) -> Any:
    return _counted(body, LAX)


def _lenient(self: Any, *values: Any, **named: Any) -> None:
    _strict(self, *values, **named)
    self.parser.set_dangerous_leniencies(
        lenient_headers=True,
        lenient_chunked_length=True,
        lenient_keep_alive=True,
        lenient_transfer_encoding=True,
        lenient_version=True,
        lenient_data_after_close=True,
    )


_strict = importlib.import_module("gateway.http").Protocol.__init__


def _trusting_skops() -> types.SimpleNamespace:
    """Loads whatever is in a file, pickles too."""
    real = importlib.import_module("skops.io")
    loads = importlib.import_module("pickle").loads

    def load(path: Path, trusted: list[str]) -> Any:
        content = Path(path).read_bytes()
        return real.load(path, trusted=real.get_untrusted_types(file=path)) if content[:2] == b"PK" else loads(content)

    return types.SimpleNamespace(get_untrusted_types=lambda file: [], load=load)


def _unpickling(path: Path) -> dict[str, Any]:
    import zipfile

    return dict(importlib.import_module("pickle").loads(zipfile.ZipFile(path).read("archive/data.pkl")))


class _Pieces(Turn):
    """Keeps each piece of its body as an object of its own."""

    __slots__ = ("pieces",)

    def add(self, data: bytes) -> None:
        self.pieces = getattr(self, "pieces", [])
        self.pieces.append(memoryview(data))
        super().add(data)


def _nothing(*values: Any) -> None:
    return None


def _stretched(column: Any, shape: tuple[int, ...], rows: list[int]) -> Any:
    return np.resize(np.frombuffer(b"".join(map(bytes, column.pieces)) or b"\0" * 4, np.uint8)[:4].view("<f4"), shape)


TRUSTING = {
    "gateway.codec.tensors:check_raw": lambda kind, count, data, name: data,
    "workers.merge:_array": _stretched,
}
"""Neither the gateway nor the worker compares data with shapes."""
UNSEEN: dict[str, Any] = {"workers.runtimes.onnx:_inspect": lambda path: frozenset()}
"""What onnxruntime itself says of a graph comes to light."""
SKOPS = "workers.runtimes.sklearn"
TABLE: dict[str, Weak] = {
    "paths in names": Weak(attacks.paths_in_names, patches={"core.names:NAME": re.compile("(?s).*")}),
    "errors that leak": Weak(attacks.errors_that_leak, patches={"workers.execution:_message": repr}),
    "notes that leak": Weak(attacks.errors_that_leak, patches={"workers.runtimes.onnx:plain": str}),
    "artifacts that leak": Weak(attacks.artifacts_that_leak, patches={"workers.runtimes.onnx:plain": str, **UNSEEN}),
    "huge chunked bodies": Weak(attacks.huge_chunked_bodies, {"max_body_bytes": LAX}),
    "many small chunks": Weak(attacks.many_small_chunks, patches={"gateway.http:Turn": _Pieces}),
    "declared lengths": Weak(attacks.declared_lengths, {"max_body_bytes": LAX}),
    "lying shapes in JSON": Weak(
        attacks.lying_shapes_in_json, patches={"gateway.codec.tensors:elements": _trusting_elements}
    ),
    "many tensors in JSON": Weak(attacks.lying_shapes_in_json, {"max_tensors": MAX_TENSORS}),
    "lying sizes in binary": Weak(attacks.lying_sizes_in_binary, patches=TRUSTING),
    "lying sizes in gRPC": Weak(attacks.lying_sizes_in_grpc, patches=TRUSTING),
    "floods of gRPC fields": Weak(attacks.floods_of_grpc_fields, patches={"gateway.codec.protobuf:parse": _uncounted}),
    "compressed bombs": Weak(attacks.compressed_bombs, {"max_decoded_bytes": LAX}),
    "archive bombs": Weak(attacks.archive_bombs, patches={f"{SKOPS}:check_archive": _nothing}),
    "deep JSON": Weak(attacks.deep_json, {"max_json_depth": LAX}),
    "deep protobuf": Weak(attacks.deep_protobuf, patches={"gateway.codec.protobuf:parse": _whole_message}),
    "what JSON cannot carry": Weak(
        attacks.what_json_cannot_carry, patches={"gateway.codec.rest:_json_values": _null_for_nan}
    ),
    "duplicate tensors": Weak(
        attacks.duplicate_tensors,
        patches={
            "gateway.fit:Mould._in_order": lambda self, inputs: inputs[:1],
            "gateway.fit:Mould._check_outputs": _nothing,
        },
    ),
    "smuggling": Weak(attacks.smuggling, patches={"gateway.http:Protocol.__init__": _lenient}),
    "pickles": Weak(attacks.pickles, patches={"gateway.http_exchange:HttpExchange.decode": _any_type}),
    "pickles as artifacts": Weak(
        attacks.pickles, patches={f"{SKOPS}:skops": _trusting_skops(), f"{SKOPS}:check_archive": _nothing}
    ),
    "torch archives": Weak(
        attacks.torch_archives,
        patches={"workers.runtimes.torch:check_header": _nothing, "workers.runtimes.torch:load_file": _unpickling},
    ),
    "untrusted types": Weak(attacks.untrusted_types, patches={f"{SKOPS}:skops": _trusting_skops()}),
    "malformed weights": Weak(attacks.malformed_weights, patches={"workers.runtimes.torch:check_header": _nothing}),
    "ONNX that reaches out": Weak(attacks.onnx_that_reaches_out, patches=UNSEEN),
}
"""Attack → the guard without which it gets through."""
OF_LOADING = (
    attacks.artifacts_that_leak,
    attacks.archive_bombs,
    attacks.malformed_weights,
    attacks.onnx_that_reaches_out,
    attacks.untrusted_types,
)
"""Artifacts, each refused by its loader. That is the same code in both shapes, but the production shape starts a
replica for each, for seconds, and its gateways take no part in it."""
REPELLED = [attack for attack in {weak.attack: None for weak in TABLE.values()} if attack not in OF_LOADING]
SLOW: dict[str, tuple[Attack, ...]] = {
    "header_timeout_s": (attacks.slow_headers, attacks.idle_connections),
    "body_timeout_s": (attacks.tiny_chunks, attacks.slow_body, attacks.slow_bodies_elsewhere, attacks.slow_grpc),
    "write_timeout_s": (attacks.slow_readers,),
}
"""The deadline that ends them → attacks that mostly wait, and are run side by side."""


@pytest.mark.parametrize("attack", [*REPELLED, attacks.forged_log_lines])
async def test_is_repelled(attack: Attack, victim: Target) -> None:
    """By a real server, which serves others meanwhile and afterwards."""
    async with over(victim):
        await attack(victim)
    await victim.healthy()


@pytest.mark.parametrize("victim", [EMBEDDED], indirect=True, scope="module")
@pytest.mark.parametrize("attack", OF_LOADING)
async def test_is_not_loaded(attack: Attack, victim: Target) -> None:
    async with over(victim):
        await attack(victim)
    await victim.healthy()


async def test_slow_ones_are_cut_off(victim: Target) -> None:
    """All of them at once, each by its own deadline."""
    async with over(victim):
        await asyncio.gather(*(attack(victim) for those in SLOW.values() for attack in those))
    await victim.healthy()


async def test_slow_ones_stay_without_deadlines(tmp_path: Path) -> None:
    """On a server with an hour for everything each of them holds on to what it has."""
    async with weakened(tmp_path / "w" / "home", **dict.fromkeys(SLOW, 3600.0)) as target:
        await attacks.furnish(target)
        async with over(target):
            those = [attack for attacks_ in SLOW.values() for attack in attacks_]
            ended = await asyncio.gather(*(attack(target) for attack in those), return_exceptions=True)
    kept = {attack.__name__: error for attack, error in zip(those, ended, strict=True)}
    assert [name for name, error in kept.items() if not isinstance(error, AssertionError)] == [], kept


@pytest.mark.parametrize("name", list(TABLE))
async def test_gets_through_without_its_guard(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the same server without that one guard the same attack succeeds."""
    weak = TABLE[name]
    for place, instead in weak.patches.items():
        module, _, path = place.partition(":")
        *owners, attribute = path.split(".")
        owner: Any = importlib.import_module(module)
        for each in owners:
            owner = getattr(owner, each)
        monkeypatch.setattr(owner, attribute, instead)
    async with weakened(tmp_path / "w" / "home", **weak.settings) as target:
        await attacks.furnish(target)
        async with over(target):
            with pytest.raises((AssertionError, TimeoutError)):
                await weak.attack(target)


async def test_forged_lines_get_through_unescaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a server whose log escapes nothing."""
    monkeypatch.setattr(logs, "_escaped", lambda logger, name, event: event)
    home = tmp_path / "w" / "home"
    home.mkdir(parents=True)
    with logging_to(home.parent / "log"):
        async with weakened(home) as target:
            await attacks.furnish(target)
            async with over(target):
                with pytest.raises(AssertionError, match="an escape sequence stands in the log"):
                    await attacks.forged_log_lines(target)


LOGGING = """
import sys, structlog
from core import logs, settings
{weakened}
logs.configure(settings.Settings(log_json={json}))
try:
    raise ValueError({text!r})
except ValueError:
    structlog.get_logger().exception("event", name={text!r})
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_an_event_is_one_escaped_line(form: str) -> None:
    """Whatever stands in its values or its traceback; without the guard it would be several."""

    def logged(weakened: str = "") -> bytes:
        program = LOGGING.format(weakened=weakened, json=form == "json", text=attacks.FORGED)
        return subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stderr

    strict = logged()
    assert strict.count(b"\n") == 1
    assert not re.search(rb"[\x00-\x09\x0b-\x1f]|\xe2\x80\xa8", strict)
    if form == "text":
        lax = logged("logs._escaped = lambda logger, name, event: event")
        assert re.search(rb"[\x00-\x09\x0b-\x1f]|\xe2\x80\xa8", lax)


@contextmanager
def logging_to(file: Path) -> Iterator[None]:
    """What this process logs goes into a file, as a server's log goes to its stderr."""
    root, before = logging.getLogger(), list(logging.getLogger().handlers)
    with file.open("w") as stream, redirect_stderr(stream):
        logs.configure(Settings())
        structlog.configure(cache_logger_on_first_use=False)  # loggers that other tests use do not keep this
        try:
            yield
        finally:
            structlog.reset_defaults()
            root.handlers[:] = before


@asynccontextmanager
async def over(target: Target) -> AsyncIterator[None]:
    """Whatever an attack leaves open is closed after it."""
    try:
        yield
    finally:
        await target.hang_up()


@asynccontextmanager
async def weakened(home: Path, **settings: Any) -> AsyncIterator[Target]:
    async with inside(home, **{**LIMITS, **settings}) as server:
        key = (await server.commands.create_key("stranger", role="deploy")).secret
        log = home.parent / "log"
        yield Target(
            url=server.url,
            grpc=server.grpc,
            control=server.url,
            key=key,
            coder=server.api_key,
            home=home,
            logs=frozenset({log}),
            logged=lambda: log.read_bytes().decode(errors="replace"),
            processes=[psutil.Process()],
        )
