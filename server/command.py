"""What every command that serves has in common: where its settings come from, and how it says that it cannot start."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import structlog
import typer

from core import logs, settings
from core.errors import PenstockError
from core.settings import Settings
from server import outlets

log = structlog.get_logger(__name__)
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="TOML file of settings (PENSTOCK_CONFIG); the environment wins."),
]


def choose(config: Path | None) -> None:
    """Have the settings of this process, and of those that it starts, come from the file too."""
    if config is not None:
        os.environ[settings.CONFIG] = str(config.absolute())


@contextmanager
def command(config: Path | None) -> Iterator[Settings]:
    """The settings in force, logs going where they should. A PenstockError ends the process: one sentence, exit 1."""
    outlets.secure()
    try:
        choose(config)
        chosen = settings.load()
        logs.configure(chosen)
        for variable, meant in settings.slips().items():
            log.warning("a variable sets nothing", variable=variable, resembles=meant)
        yield chosen
    except PenstockError as error:
        typer.echo(f"penstock: {error.message}", err=True)
        raise typer.Exit(1) from None
