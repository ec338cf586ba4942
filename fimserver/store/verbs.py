"""Commands of `fimserver models`: list, best, get, add, rm. Only `get` uses the network."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from fimserver.commands.options import settings_of
from fimserver.exits import INTERRUPTED
from fimserver.paths import models_changed
from fimserver.settings import Settings

Command = TypeVar("Command", bound=Callable[..., Any])


def _models_dir(command: Command) -> Command:
    help_text = "Folder of downloaded models. [default: the setting models_dir]"
    return click.option("--models-dir", type=click.Path(file_okay=False), help=help_text)(command)


def _settings(models_dir: str | None) -> Settings:
    """Return the settings, with the option of the verb or of the group."""
    given = models_dir or (click.get_current_context().find_object(str) or None)
    return settings_of({"models_dir": given})


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="A JSON array, one object per model.")
@_models_dir
@click.pass_context
def models(context: click.Context, /, models_dir: str | None, *, as_json: bool) -> None:
    """List models: installed, found in other programs, and available to download.

    Shows size, licence, routes, whether they fit, and measured speed.
    """
    context.obj = models_dir or ""
    if context.invoked_subcommand is not None:
        return
    from fimserver.store import catalogue, listing  # noqa: PLC0415 - the other verbs need no listing

    settings = _settings(models_dir)
    entries = catalogue.entries(settings)
    if as_json:
        click.echo(json.dumps([entry.as_json() for entry in entries], indent=1))
    else:
        click.echo(listing.text(entries, catalogue.caches(), is_terminal=sys.stdout.isatty()))


@models.command()
@click.option("--json", "as_json", is_flag=True, help="A JSON array, one object per route.")
@_models_dir
def best(models_dir: str | None, *, as_json: bool) -> None:
    """Show the best model for this machine on each route, why, and how to get it. Downloads nothing."""
    from fimserver.machine import this_machine  # noqa: PLC0415
    from fimserver.store.advice import best_models  # noqa: PLC0415

    advice = best_models(_settings(models_dir), this_machine())
    if as_json:
        click.echo(json.dumps([item.as_json() for item in advice], indent=1))
    else:
        click.echo("\n".join(f"{item.route}: {item.text()}" for item in advice))


@models.command()
@click.argument("name")
@click.option(
    "--from",
    "url",
    metavar="URL",
    default="",
    help="Fetch from this URL (of the file, or of a folder, with / at the end).",
)
@_models_dir
def get(name: str, url: str, models_dir: str | None) -> None:
    """Get a model: from this disk if another program has it, else from the hub, else from the Python index.

    Files must have the hashes in the card or those that the hub announces. An interrupted download resumes
    where it stopped. Nothing is installed, and no code is downloaded.
    """
    from fimserver.cards import get_card  # noqa: PLC0415
    from fimserver.store.fetch import fetch  # noqa: PLC0415 - imports the hub's library
    from fimserver.store.progress import ProgressBar  # noqa: PLC0415

    card = get_card(name)
    settings = _settings(models_dir)
    try:
        with ProgressBar() as bar:
            where = fetch(card, settings.models_dir, bar, url)
    except KeyboardInterrupt:
        click.echo(f"stopped; partial files are kept: fimserver models get {name} continues", err=True)
        sys.exit(INTERRUPTED)
    models_changed()
    click.echo(f"{name} is ready in {where}")


@models.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--as",
    "name",
    metavar="NAME",
    default="",
    help="Name of the model, as `fimserver models` lists it.",
)
@_models_dir
def add(path: Path, name: str, models_dir: str | None) -> None:
    """Use a model on this disk without copying it: make a link to PATH under the name of its card.

    PATH is a GGUF file whose hash is in a card, or a folder with config.json and safetensors, for example in
    Hugging Face's cache. `fimserver models` lists the models of Hugging Face, Ollama, LM Studio and llama.cpp
    on this machine.
    """
    from fimserver.store.links import add as add_link  # noqa: PLC0415

    card = add_link(path, _settings(models_dir).models_dir, name)
    models_changed()
    click.echo(f"{card.name} is ready: a link to {path}")


@models.command("rm")
@click.argument("name")
@_models_dir
def remove(name: str, models_dir: str | None) -> None:
    """Remove a downloaded or added model and partial downloads. The target of a link stays.

    NAME may be `caches`: packed weights and other files that are made again when needed.
    """
    from fimserver.store import catalogue, links  # noqa: PLC0415
    from fimserver.store.sizes import size_text  # noqa: PLC0415

    freed = (
        catalogue.clear_caches() if name == "caches" else links.remove(name, _settings(models_dir).models_dir)
    )
    models_changed()
    click.echo(f"removed {name}: {size_text(freed)} free")
