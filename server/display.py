"""What `penstock up` shows while it starts: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Display:
    """A context manager; `step` says what is being done and which share of it (0 to 1) is."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stdout, highlight=False)
        columns = (TextColumn("{task.description:<34}"), BarColumn(28), TimeElapsedColumn())
        self._progress = Progress(*columns, console=self._console, transient=True)
        self._task: TaskID | None = None
        self._step = ""

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._console.is_terminal:  # elsewhere it would add an empty line
            self._progress.stop()

    def step(self, what: str, share: float = 0.0) -> None:
        if what != self._step:
            self._step = what
            if not self._console.is_terminal:
                print(f"{what} …", flush=True)
            elif self._task is None:
                self._task = self._progress.add_task(what, total=1.0)
        if self._task is not None:
            self._progress.update(self._task, description=what, completed=share)

    def say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)
