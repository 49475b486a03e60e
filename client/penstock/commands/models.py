"""`penstock models …`: what the server holds, and what becomes of it."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from penstock.commands.printing import Json, as_json, connected, size, table, when

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, show, alias, load, unload, delete models.")

Name = Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.")]
Version = Annotated[
    str | None, typer.Option("--version", metavar="V", help="Version number or alias; without it: see the command.")
]
OneVersion = Annotated[str, typer.Argument(metavar="VERSION", help="Version number or alias.")]


@app.command("list")
def list_models(json: Json = False) -> None:
    """List the models that the key may see."""
    with connected() as ps:
        found = ps.models()
    if json:
        as_json(found)
        return
    heads = ("MODEL", "NEWEST", "STATE", "KEPT", "PLATFORM", "ALIASES", "OWNER")
    table(heads, map(_row, found), "no models yet: `penstock push PATH --name NAME` brings one")


def _row(model: dict[str, Any]) -> tuple[str, ...]:
    versions = model["versions"]
    newest = versions[0] if versions else {}
    aliases = ", ".join(f"{alias} → {version}" for alias, version in sorted(model["aliases"].items()))
    number, kept = str(newest.get("version", "")), str(len(versions))
    return model["name"], number, newest.get("state", ""), kept, newest.get("platform", ""), aliases, model["owner"]


@app.command()
def show(model: Name, version: Version = None, json: Json = False) -> None:
    """Show a model with its versions, or one version with all that is recorded of it."""
    with connected() as ps:
        found = ps.model(model) if version is None else ps.version(model, version)
    if json:
        as_json(found)
    elif version is None:
        _show_model(found)
    else:
        _show_version(found)


def _show_model(model: dict[str, Any]) -> None:
    aliases = ", ".join(f"{alias} → {version}" for alias, version in sorted(model["aliases"].items()))
    typer.echo(f"{model['name']}   owner {model['owner']}" + (f"   aliases {aliases}" if aliases else ""))
    for version in model["versions"]:
        typer.echo("")
        _show_version(version)


def _show_version(version: dict[str, Any]) -> None:
    state = version["state"] + (f": {version['reason']}" if version.get("reason") else "")
    rows = [
        ("version", str(version["version"])),
        ("state", state),
        ("platform", version["platform"] + (f" ({version['entry']})" if version.get("entry") else "")),
        ("artifact", f"{size(version['size'])}, SHA-256 {version['digest']}"),
        ("max batch", str(version["max_batch"]) + ("" if version["max_batch"] else " (no batching)")),
        ("deadline", f"{version['default_deadline_ms']} ms, of requests that name none"),
        ("queue bound", f"{version['queue_bound']} waiting requests"),
        (
            "warm-up",
            f"batches of {', '.join(map(str, version['warmup']))}"
            if version["warmup"]
            else "sizes are chosen as it loads",
        ),
        *((f"input {tensor['name']}", tensor_text(tensor)) for tensor in version["signature"]["inputs"]),
        *((f"output {tensor['name']}", tensor_text(tensor)) for tensor in version["signature"]["outputs"]),
        *((f"tag {name}", value) for name, value in sorted(version["tags"].items())),
        ("pushed", f"{when(version['created'])} by {version['owner']}"),
    ]
    width = max(len(name) for name, _ in rows) + 2
    for name, text in rows:
        typer.echo(f"  {name:<{width}}{text}")


def tensor_text(tensor: dict[str, Any]) -> str:
    """`FP32 [-1, 10]`, with the labels of the classes where an output has them."""
    labels = tensor.get("labels") or []
    return f"{tensor['datatype']} {list(tensor['shape'])}" + (f", labels {', '.join(labels)}" if labels else "")


@app.command()
def alias(
    model: Name,
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="Name that stands for the version, e.g. champion.")],
    version: OneVersion,
) -> None:
    """Let an alias stand for a version (`champion` is what requests without a version get)."""
    with connected() as ps:
        done = ps.alias(model, alias, version)
    typer.echo(f"{model}: {alias} is version {done.get('version', version)}")


@app.command()
def unalias(
    model: Name, alias: Annotated[str, typer.Argument(metavar="ALIAS", help="The alias to take away.")]
) -> None:
    """Take an alias away."""
    with connected() as ps:
        ps.unalias(model, alias)
    typer.echo(f"{model}: {alias} is gone")


@app.command()
def load(model: Name, version: Version = None) -> None:
    """Load a version, or the newest; ends when it is ready."""
    with connected() as ps:
        done = ps.load(model, version)
    typer.echo(f"{model}: version {done.get('version', version)} is {done.get('state', 'READY')}")


@app.command()
def unload(model: Name, version: Version = None) -> None:
    """Unload a version, or all of the model; ends when its requests are answered and it is gone."""
    with connected() as ps:
        ps.unload(model, version)
    typer.echo(f"{model}: {_part(version)} unloaded")


@app.command()
def delete(
    model: Name, version: Version = None, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False
) -> None:
    """Delete a version that no alias stands for, or the whole model with all of them and its aliases.

    Before it deletes a whole model it asks, where it is run on a terminal.
    """
    if version is None and not yes and sys.stdin.isatty():
        typer.confirm(f"Delete {model} with all its versions and aliases?", abort=True)
    with connected() as ps:
        ps.delete(model, version)
    typer.echo(f"{model}: {_part(version)} deleted")


def _part(version: str | None) -> str:
    return "all versions" if version is None else f"version {version}"


@app.command()
def tag(
    model: Name,
    version: OneVersion,
    tags: Annotated[list[str], typer.Argument(metavar="NAME=VALUE...", help="The tags; those there are replaced.")],
) -> None:
    """Replace the tags of a version."""
    pairs = pairs_of(tags)
    with connected() as ps:
        done = ps.tag(model, version, pairs)
    typer.echo(f"{model}: version {done.get('version', version)} has the tags {', '.join(tags)}")


def pairs_of(tags: list[str]) -> dict[str, str]:
    """`["stage=test"]` → `{"stage": "test"}`."""
    pairs = dict(tag.partition("=")[::2] for tag in tags)
    wrong = [tag for tag in tags if "=" not in tag or tag.startswith("=")]
    if wrong:
        raise typer.BadParameter(f"{wrong[0]!r} is no tag: write NAME=VALUE")
    return pairs


@app.command()
def architectures(json: Json = False) -> None:
    """List the torch architectures whose weights can be pushed as .safetensors."""
    with connected() as ps:
        found = ps.architectures()
    if json:
        as_json(found)
        return
    table(("NAME", "WHAT IT IS"), ((row["name"], row["description"]) for row in found), "none")
