"""Options of the command line for how many replicas a deployment has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from fimserver.commands.options import given

Command = TypeVar("Command", bound=Callable[..., Any])
SCALE = ("min_replicas", "max_replicas", "queue", "gpus")


def scale_options(command: Command) -> Command:
    """Add the flags of a scale; one that is not given is not set."""
    options = (
        click.option("--min-replicas", type=click.IntRange(1, 1000), help="Replicas at least. [default: 1]"),
        click.option("--max-replicas", type=click.IntRange(1, 1000), help="Replicas at most. [default: 4]"),
        click.option(
            "--queue",
            type=click.IntRange(1, 1000),
            help="Requests that a replica is meant to have; more of them add replicas. [default: 4]",
        ),
        click.option("--gpus", type=click.FloatRange(0, 64), help="GPUs of one replica; 0: none."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def taken(flags: dict[str, Any]) -> dict[str, Any]:
    """Take the flags of a scale out of ``flags``; those that were given. The least raises the most."""
    scale = given({name: flags.pop(name) for name in SCALE})
    if "max_replicas" not in scale and "min_replicas" in scale:
        scale["max_replicas"] = max(4, scale["min_replicas"])
    return scale
