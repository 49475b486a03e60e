"""`penstock version`: which version is here, and which answers."""

from __future__ import annotations

import typer

from penstock import __version__
from penstock.commands.printing import Json, as_json, connected
from penstock.errors import PenstockError


def version(json: Json = False) -> None:
    """Print the versions of this command and of the server."""
    try:
        with connected() as ps:
            server, why = ps.server(), ""
    except PenstockError as error:
        server, why = {}, error.message
    if json:
        as_json({"client": __version__, "server": server.get("version"), "error": why or None})
        return
    typer.echo(f"penstock {__version__}")
    typer.echo(f"server: {why}" if why else f"server: {server.get('name')} {server.get('version')}")
