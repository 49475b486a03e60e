"""`penstock deployments …`: how many replicas a model runs as, and what each of them gets."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from penstock.commands.printing import Json, as_json, connected, table

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Say how many replicas a model runs as, and what each gets."
)

Name = Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.")]


@app.command("list")
def list_deployments(json: Json = False) -> None:
    """List how the models are to run."""
    with connected() as ps:
        found = [model["deployment"] for model in ps.status()["models"]]
    if json:
        as_json(found)
        return
    heads = ("MODEL", "REPLICAS", "CPUS", "GPUS", "ACCELERATOR")
    table(heads, map(_row, found), "no models yet: `penstock push PATH --name NAME` brings one")


def _row(deployment: dict[str, Any]) -> tuple[str, ...]:
    gpus, accelerator = deployment["gpus"], deployment["accelerator"]
    cpus = f"{deployment['cpus']:g}"
    return deployment["model"], replicas_text(deployment), cpus, f"{gpus:g}" if gpus else "", accelerator


def replicas_text(deployment: dict[str, Any]) -> str:
    """`2`, or `2 to 8`."""
    least, most = deployment["replicas"], deployment["max_replicas"]
    return str(least) if least == most else f"{least} to {most}"


@app.command()
def show(model: Name, json: Json = False) -> None:
    """Show how a model is to run."""
    with connected() as ps:
        _print(ps.deployment(model), json)


@app.command("set")
def set_deployment(
    model: Name,
    replicas: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Replicas of each loaded version, at least.")
    ] = None,
    max_replicas: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Replicas at most: as many as demand asks for.")
    ] = None,
    cpus: Annotated[
        float | None, typer.Option(metavar="CORES", help="Cores that a replica is placed by, e.g. 0.5.")
    ] = None,
    gpus: Annotated[
        float | None, typer.Option(metavar="DEVICES", min=0, help="GPUs of a replica: a share (0.25) or whole ones.")
    ] = None,
    accelerator: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Type of GPU in Ray's words: H200, L4, …; '': any.")
    ] = None,
    json: Json = False,
) -> None:
    """Say how a model is to run; what is not named stays as it is."""
    if all(value is None for value in (replicas, max_replicas, cpus, gpus, accelerator)):
        raise typer.BadParameter("nothing to set: name --replicas, --max-replicas, --cpus, --gpus or --accelerator")
    with connected() as ps:
        done = ps.deploy(
            model, replicas=replicas, max_replicas=max_replicas, cpus=cpus, gpus=gpus, accelerator=accelerator
        )
    _print(done, json)


@app.command()
def reset(model: Name, json: Json = False) -> None:
    """Let a model run by the defaults again."""
    with connected() as ps:
        _print(ps.reset_deployment(model), json)


def _print(deployment: dict[str, Any], json: bool) -> None:
    if json:
        as_json(deployment)
        return
    gpus, accelerator = deployment["gpus"], deployment["accelerator"]
    devices = f"{gpus:g} GPU{'s' if gpus > 1 else ''} {accelerator}".rstrip() if gpus else "no GPU"
    typer.echo(
        f"{deployment['model']}: {replicas_text(deployment)} {_replicas(deployment['max_replicas'])} of each loaded "
        f"version, {deployment['cpus']:g} CPU{'s' if deployment['cpus'] > 1 else ''} and {devices} each"
        + ("" if deployment["revision"] else " (defaults)")
    )


def _replicas(most: int) -> str:
    return "replica" if most == 1 else "replicas"
