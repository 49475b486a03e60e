"""Other processes are told of what this one writes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from repository.records import Deployment
from tests.repository.scripted import ROOT, SPEC, Bench, chunks, manifest


async def test_every_write_is_announced(bench: Bench) -> None:
    """Other processes look at once when one of these was called, and are left in peace by a call that only reads."""
    told: list[str] = []
    commands = bench.commands
    key = await commands.create_key("k")
    pushed = await bench.push()
    writes: dict[str, Callable[[], Awaitable[object]]] = {
        "push": lambda: commands.push("m", manifest(), chunks(b"x"), ROOT),
        "complete_signature": lambda: commands.complete_signature(pushed, SPEC, 0),
        "set_alias": lambda: commands.set_alias("m", "blue", 1),
        "delete_alias": lambda: commands.delete_alias("m", "blue"),
        "set_tags": lambda: commands.set_tags("m", 1, {"a": "b"}),
        "set_deployment": lambda: commands.set_deployment(Deployment(model="m")),
        "delete_deployment": lambda: commands.delete_deployment("m"),
        "unload": lambda: commands.unload("m", 1),
        "load": lambda: commands.load("m", 1),
        "create_key": lambda: commands.create_key("other"),
        "revoke_key": lambda: commands.revoke_key(key.key.key_id, ROOT),
        "delete_version": lambda: commands.delete_version("m", 1),
        "delete_model": lambda: commands.delete_model("m"),
    }
    for name, write in writes.items():
        bench.watch.announce = lambda name=name: told.append(name)  # type: ignore[misc]
        await write()
    assert list(dict.fromkeys(told)) == list(writes)
    told.clear()
    await commands.keys(ROOT)
    await bench.watch.refresh()
    assert told == []
