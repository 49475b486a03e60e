"""`penstock push`: a model in."""

from __future__ import annotations

import json as json_text
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.commands.models import pairs_of
from penstock.commands.printing import Json, as_json, connected
from penstock.errors import InvalidInput

if TYPE_CHECKING:
    from penstock.pushing import Progress


def push(
    path: Annotated[
        str,
        typer.Argument(metavar="PATH[:Class]", help="A .onnx, .safetensors, .pt2 or .skops file, or models.py:Class."),
    ],
    name: Annotated[str, typer.Option(help="Name of the model; a push to one that exists makes its next version.")],
    example: Annotated[
        str | None, typer.Option(metavar="F", help="Example input, in a form that `predict --input` takes.")
    ] = None,
    signature: Annotated[
        str | None,
        typer.Option(metavar="F", help='V2 metadata: {"inputs": [{"name", "datatype", "shape"}], "outputs": [...]}.'),
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, help="Rows of one execution; 0: no batching. Default: 32 where all shapes allow it."
        ),
    ] = None,
    alias: Annotated[str | None, typer.Option(metavar="A", help="Alias for the new version, e.g. champion.")] = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="The model may run its own code at the server (.py, .pt2).")
    ] = False,
    architecture: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of a .safetensors file: see `penstock models architectures`."),
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Tag of the version; repeatable.")] = None,
    deadline_ms: Annotated[
        int | None, typer.Option(metavar="MS", min=1, help="Deadline of requests that name none.")
    ] = None,
    queue_bound: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Requests that may wait; more are refused.")
    ] = None,
    warmup: Annotated[
        str | None, typer.Option(metavar="N,N...", help="Batch sizes run before the version is ready, e.g. 1,8,32.")
    ] = None,
    json: Json = False,
) -> None:
    """Push a model, wait until it is ready.

    Prints the number of its version, or says why it would not load.
    """
    from penstock.reading import read_input

    options: dict[str, Any] = {
        "example": None if example is None else read_input(example).values,
        "signature": None if signature is None else read_signature(Path(signature)),
        "max_batch": max_batch,
        "alias": alias,
        "allow_code": allow_code,
        "architecture": architecture,
        "tags": pairs_of(tag) if tag else None,
        "default_deadline_ms": deadline_ms,
        "queue_bound": queue_bound,
        "warmup": None if warmup is None else sizes_of(warmup),
    }
    with connected() as ps, progress_bar(name) as progress:
        record = ps.push(path, name, progress=progress, **options)
    if json:
        as_json(record)
    else:
        typer.echo(str(record["version"]))


def read_signature(path: Path) -> dict[str, Any]:
    try:
        found = json_text.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidInput(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path} is no JSON file: {error}") from None
    if not isinstance(found, dict):
        raise InvalidInput(f'{path} is no signature: one is {{"inputs": [...], "outputs": [...]}}')
    return found


def sizes_of(text: str) -> list[int]:
    """`1,8,32` → [1, 8, 32]."""
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = [0]
    if min(sizes) < 1:
        raise typer.BadParameter(f"{text!r} is no list of batch sizes: write 1,8,32")
    return sizes


@contextmanager
def progress_bar(name: str) -> Iterator[Progress | None]:
    """A bar of the bytes sent, then the wait for the model to load; nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"sending {name}", total=None)

        def sent(done: int, total: int) -> None:
            what = "loading and warming up" if done >= total else "sending"
            bar.update(task, completed=done, total=total, description=f"{what} {name}")

        yield sent
