"""The `penstock` command. Starts fast: what a command needs is imported when it runs.

Exit codes: 0 done, 1 failed (one sentence on stderr), 2 wrong usage. The server's commands come from the distribution
penstock-server through the entry-point group `penstock.commands`: each is a plain function with typer annotations,
or a typer application, imported only when it is called.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

import typer

from penstock import __version__
from penstock.commands import deployments, keys, models, predict, push
from penstock.commands.status import status as status_command
from penstock.commands.version import version as version_command
from penstock.errors import PenstockError

GROUP = "penstock.commands"
BROUGHT_BY = "penstock-server"
SERVER_COMMANDS = {
    "up": "Start a server here, in one process or in its production shape.",
    "gateway": "Serve predictions by itself, over a broker and a repository that others share.",
    "control": "Serve the control API by itself, over a repository that others share.",
    "config": "Print every setting of a server.",
    "workers": "Run the models of a repository as replicas on a Ray cluster.",
    "services": "Start and stop RabbitMQ, MongoDB, toxiproxy, Ray, Jaeger and Prometheus.",
    "setup": "Put the first key and the sample models into a repository.",
}
"""Commands of the other distribution, so that help lists them without importing it."""

PLAIN: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None, "pretty_exceptions_enable": False}

app = typer.Typer(
    name="penstock",
    no_args_is_help=True,
    help="Hand models to a Penstock inference server, and ask it for predictions.\n\n"
    "The server and the key come from PENSTOCK_URL, PENSTOCK_CONTROL, PENSTOCK_GRPC and PENSTOCK_API_KEY, "
    "else from client.toml in PENSTOCK_HOME (.penstock).",
    **PLAIN,
)
app.command("push")(push.push)
app.add_typer(models.app, name="models")
app.command("predict")(predict.predict)
app.add_typer(deployments.app, name="deployments")
app.command("status")(status_command)
app.add_typer(keys.app, name="keys")
app.command("version")(version_command)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"penstock {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Print this command's version and exit."),
    ] = False,
) -> None:
    pass


def _registered() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _forward(name: str) -> Callable[[typer.Context], None]:
    """A command that imports the one it stands for when it is called, and hands its arguments on."""

    def forward(context: typer.Context) -> None:
        entry = _registered().get(name)
        if entry is None:
            raise PenstockError(
                f"`penstock {name}` comes with the distribution {BROUGHT_BY}, which is not installed here"
            )
        loaded = entry.load()
        command = loaded if isinstance(loaded, typer.Typer) else _single(name, loaded)
        command(args=context.args, prog_name=f"penstock {name}")

    return forward


def _single(name: str, function: Callable[..., Any]) -> typer.Typer:
    command = typer.Typer(**PLAIN)
    command.command(name)(function)
    return command


def _add_server_commands() -> None:
    own = {"push", "models", "predict", "deployments", "status", "keys", "version"}
    for name in [*SERVER_COMMANDS, *sorted(set(_registered()) - set(SERVER_COMMANDS) - own)]:
        app.command(
            name,
            help=SERVER_COMMANDS.get(name, f"From the distribution {BROUGHT_BY}."),
            add_help_option=False,
            context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        )(_forward(name))


_add_server_commands()


def main() -> None:
    try:
        app()
    except PenstockError as error:
        _fail(_sentence(error))
    except Exception as error:
        if os.environ.get("PENSTOCK_DEBUG"):
            raise
        _fail(f"{type(error).__name__}: {error} (PENSTOCK_DEBUG=1 shows where)")


def _sentence(error: PenstockError) -> str:
    return error.message + (f" (error id {error.error_id})" if error.error_id else "")


def _fail(sentence: str) -> None:
    sys.stderr.write(f"penstock: {sentence}\n")
    raise SystemExit(1)
