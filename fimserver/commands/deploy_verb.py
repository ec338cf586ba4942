"""The verb ``deploy`` of the command line: files for Ray Serve."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from fimserver.commands.options import given, settings_options
from fimserver.commands.scale import scale_options, taken
from fimserver.errors import InputError


@click.group()
def deploy() -> None:
    """Serve from several machines with Ray Serve."""


@deploy.command()
@click.argument(
    "file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True), default="fimserver.yaml"
)
@click.option(
    "--listen",
    "address",
    metavar="HOST:PORT",
    default="0.0.0.0:8765",
    show_default=True,
    help="Of each machine.",
)
@click.option(
    "--allow-host", "hosts", metavar="NAME", multiple=True, help="A name by which clients call the machines."
)
@click.option("--token-file", type=click.Path(path_type=Path), help="On each machine; else FIMSERVER_TOKEN.")
@scale_options
@settings_options("request", "policy", "quantize", "threads", "dllm_card", "ar_card", "device", "drafter")
def init(file: Path, address: str, hosts: tuple[str, ...], token_file: Path | None, **flags: Any) -> None:
    """Write a commented file for `serve run` and `serve deploy`, with the given settings in it.

    FILE is fimserver.yaml unless given; - is the standard output. An existing file is not overwritten.
    """
    from fimserver.host.deployment import Scale, serve_file  # noqa: PLC0415 - loads the host
    from fimserver.host.sockets import parse_address  # noqa: PLC0415

    scale = Scale(**{"gpus": 1.0, **taken(flags)})
    where = parse_address(address)
    text = serve_file(str(file), scale, where, settings=given(flags), hosts=hosts, token_file=token_file)
    if str(file) == "-":
        sys.stdout.write(text)
        return
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError:
        raise InputError(f"{file} is there already: remove it, or give another name") from None
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from None
    click.echo(f"wrote {file}: FIMSERVER_TOKEN=choose-one serve run {file}", err=True)
