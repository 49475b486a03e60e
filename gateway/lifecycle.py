"""What V2's model repository extension asks of the repository's commands."""

from __future__ import annotations

from typing import Any, Protocol


class Lifecycle(Protocol):
    """Two verbs of `repository/commands.py`; both answer when done."""

    async def load(self, model: str, version: int | None = None) -> Any: ...

    async def unload(self, model: str, version: int | None = None) -> Any: ...
