"""`penstock keys …`: who may do what. Needs a key of the role admin."""

from __future__ import annotations

import re
import sys
from typing import Annotated, Any, Literal

import typer

from penstock.commands.printing import Json, as_json, connected, table, when

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Create, list and revoke API keys.")

Role = Literal["predict", "deploy", "admin", "observe"]
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call the key.")],
    role: Annotated[
        Role,
        typer.Option(
            metavar="ROLE",
            help="predict; deploy: also push, load and alias; admin: also make keys; observe: read metrics only.",
        ),
    ] = "predict",
    owner: Annotated[str | None, typer.Option(help="Tenant the key counts for; default: its name.")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Models it may see, e.g. 'churn*'; repeatable. Default: all."),
    ] = None,
    grant: Annotated[
        list[str] | None, typer.Option(metavar="GRANT", help="code: may push models that carry code; repeatable.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="TIME", help="Life of the key: 45m, 12h, 30d, 8w. Default: no end.")
    ] = None,
    json: Json = False,
) -> None:
    """Create a key and print it: this once, it is not stored anywhere."""
    seconds = None if expires is None else seconds_of(expires)
    with connected() as ps:
        made = ps.keys.create(
            name, role=role, owner=owner, models=model or ["*"], grants=grant or [], expires_in_s=seconds
        )
    if json:
        as_json(made)
        return
    typer.echo(made["key"])
    if sys.stdout.isatty():
        typer.echo(f"This is shown once. Its id, for `penstock keys revoke`, is {made['id']}.", err=True)


def seconds_of(text: str) -> float:
    """`30d` → 2592000.0."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhdw])", text)
    if match is None or float(match[1]) == 0:
        raise typer.BadParameter(f"{text!r} is no time: write a number and s, m, h, d or w, like 30d")
    return float(match[1]) * UNITS[match[2]]


@app.command("list")
def list_keys(json: Json = False) -> None:
    """List the keys, without their secrets."""
    with connected() as ps:
        found = ps.keys.list()
    if json:
        as_json(found)
        return
    heads = ("ID", "NAME", "OWNER", "ROLE", "MODELS", "GRANTS", "CREATED", "EXPIRES", "STATE")
    table(heads, map(_row, found), "no keys")


def _row(key: dict[str, Any]) -> tuple[str, ...]:
    return (
        key["id"],
        key["name"],
        key["owner"],
        key["role"],
        ", ".join(key["models"]),
        ", ".join(key["grants"]),
        when(key["created"]),
        when(key["expires"]) or "never",
        "revoked" if key["revoked"] else "live",
    )


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the key, as `keys list` shows it.")],
) -> None:
    """Make a key worthless, within seconds."""
    with connected() as ps:
        ps.keys.revoke(key_id)
    typer.echo(f"the key {key_id} is revoked")
