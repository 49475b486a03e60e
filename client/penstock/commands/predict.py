"""`penstock predict`: an answer out, with the label where the model has labels and the image where the input is one."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.commands.printing import Json, as_json, connected

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from penstock.client import Client
    from penstock.reading import Input
    from penstock.wire import Array, Response

Labels = Mapping[str, Sequence[str]]
"""Names of the classes, by output."""

TOP = 3
"""Classes shown of a single row."""
ROWS = 20
"""Rows shown of many."""
BAR = 24


def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.")],
    input: Annotated[str, typer.Option(metavar="F", help="File with the input; `-` = standard input.")],  # noqa: A002
    version: Annotated[
        str | None, typer.Option(metavar="V", help="Version number or alias; default: champion, else the newest.")
    ] = None,
    draw: Annotated[
        bool | None,
        typer.Option("--draw/--no-draw", help="Draw the input; default: where it is one 8x8 or 28x28 image."),
    ] = None,
    timeout: Annotated[float | None, typer.Option(metavar="S", min=0.001, help="Seconds for the answer.")] = None,
    json: Json = False,
) -> None:
    """Ask a model for a prediction and print its outputs.

    \b
    The input file may be
      a V2 request     {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [...]}]}
      a nested list    [[5.1, 3.5, 1.4, 0.2]]               for a model of one input
      lists by name    {"age": [[41]], "income": [[52000]]}
      an .npy array, or an .npz of arrays by name
    Values are cast to the datatypes of the model; what a cast would lose is refused.
    """
    from penstock.reading import read_input

    given = read_input(input)
    with connected() as ps:
        response = ps.infer(
            model, given.values, version=version, timeout=timeout, parameters=given.parameters, outputs=given.outputs
        )
        labels = _labels(ps, response)
    if json:
        as_json(_document(response, labels))
    else:
        _show(response, labels, given, draw)


def _labels(ps: Client, response: Response) -> Labels:
    """What the control API says of the version that answered; nothing where it cannot be asked."""
    from penstock.errors import PenstockError

    try:
        record = ps.version(response.model, response.version)
    except PenstockError:
        return {}
    outputs = record.get("signature", {}).get("outputs", [])
    return {output["name"]: output["labels"] for output in outputs if output.get("labels")}


def labelled(array: Array, labels: Sequence[str]) -> list[str] | None:
    """The label of each row: of the largest score, where a row has one for each class; of the class that it names.

    None where the output is neither.
    """
    if array.dtype.kind == "f" and array.ndim > 1 and array.shape[-1] == len(labels):
        return [labels[int(best)] for best in array.argmax(axis=-1).reshape(-1)]
    if array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() < len(labels):
        return [labels[int(index)] for index in array.reshape(-1)]
    return None


# --- for programs -------------------------------------------------------------------------------------------------


def _document(response: Response, labels: Labels) -> dict[str, Any]:
    outputs = [_output(name, array, response, labels.get(name)) for name, array in response.outputs.items()]
    head = {"model_name": response.model, "model_version": response.version}
    return {**head, **({"id": response.id} if response.id else {}), "outputs": outputs}


def _output(name: str, array: Array, response: Response, labels: Sequence[str] | None) -> dict[str, Any]:
    found = labelled(array, labels) if labels else None
    tensor = {"name": name, "datatype": response.datatypes[name], "shape": list(array.shape), "data": _plain(array)}
    return {**tensor, **({"labels": found} if found else {})}


def _plain(array: Array) -> list[Any]:
    """Elements that JSON can carry: NaN and infinity become null, bytes that are not UTF-8 are escaped."""
    import numpy as np

    if array.dtype.kind == "O":
        return [element.decode(errors="backslashreplace") for element in array.reshape(-1)]
    if array.dtype.kind not in "biu":
        flat = array.astype(np.float64).reshape(-1)
        return [float(value) if np.isfinite(value) else None for value in flat]
    return list(array.reshape(-1).tolist())


# --- for people ---------------------------------------------------------------------------------------------------


def _show(response: Response, labels: Labels, given: Input, asked: bool | None) -> None:
    from rich.console import Console, Group
    from rich.table import Table
    from rich.text import Text

    title = Text.assemble((response.model, "bold"), f", version {response.version}")
    parts: list[RenderableType] = [title]
    if given.id:
        parts.append(Text(given.id, style="dim"))
    for name, array in response.outputs.items():
        parts += [Text(""), *_answer(name, array, labels.get(name))]
    image = None if asked is False else _picture(given, asked=bool(asked))
    console = Console(highlight=False)
    if image is None:
        console.print(Group(*parts))
        return
    side_by_side = Table.grid(padding=(0, 4))
    side_by_side.add_row(image, Group(*parts))
    console.print(side_by_side)


def _picture(given: Input, *, asked: bool) -> Table | None:
    """The input in a frame, if there is one input and it is one image."""
    from penstock.drawing import PLAIN_SHADES, SHADES, draw, image_of

    arrays = list(given.values.values()) if isinstance(given.values, dict) else [given.values]
    image = image_of(arrays[0], asked=asked) if len(arrays) == 1 else None
    if image is None:
        return None
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rich_text = (sys.stdout.encoding or "").lower().startswith("utf")
    frame = Table(box=box.ROUNDED if rich_text else box.ASCII, show_header=False, padding=(0, 1), border_style="dim")
    frame.add_row(Text("\n".join(draw(image, SHADES if rich_text else PLAIN_SHADES)), no_wrap=True))
    return frame


def _answer(name: str, array: Array, labels: Sequence[str] | None) -> list[RenderableType]:
    from rich.text import Text

    found = labelled(array, labels) if labels else None
    head = Text.assemble((name, "cyan"), f"  {list(array.shape)}")
    if not found or labels is None:
        return [head, Text(_values(array))]
    if len(found) > 1:
        lines = [f"{row:>4}  {label}" for row, label in enumerate(found[:ROWS])]
        more = [f"      and {len(found) - ROWS} more"] if len(found) > ROWS else []
        return [head, Text("\n".join(lines + more))]
    if array.dtype.kind == "f":
        return [Text.assemble((name, "cyan"), " → ", (found[0], "bold green")), _ranking(array, labels)]
    return [Text.assemble((name, "cyan"), " → ", (found[0], "bold green"))]


def _values(array: Array) -> str:
    import numpy as np

    if array.dtype.kind == "O":
        array = np.array([element.decode(errors="backslashreplace") for element in array.reshape(-1)])
    return np.array2string(array, threshold=200, edgeitems=5, precision=6, suppress_small=True, separator=", ")


def _ranking(scores: Array, labels: Sequence[str]) -> Table:
    """The best classes of one row, with bars where the scores are probabilities."""
    from rich.table import Table
    from rich.text import Text

    row = scores.reshape(-1)
    likely = bool(row.min() >= 0 and abs(float(row.sum()) - 1) < 1e-2)
    grid = Table.grid(padding=(0, 2))
    grid.add_column()
    grid.add_column(justify="right")
    for place, index in enumerate(row.argsort()[::-1][:TOP]):
        score = float(row[index])
        style = "bold green" if place == 0 else ""
        cells = [Text(labels[int(index)], style=style), Text(f"{score:.1%}" if likely else f"{score:.4g}", style=style)]
        bar = [Text("━" * round(score * BAR), style=style or "dim")] if likely else []
        grid.add_row(*cells, *bar)
    return grid
