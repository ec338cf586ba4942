"""Command-line options for the number of replicas of a deployment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from fimserver.commands.options import given

Command = TypeVar("Command", bound=Callable[..., Any])
SCALE = ("min_replicas", "max_replicas", "queue", "gpus")


def scale_options(command: Command) -> Command:
    """Add the flags for the number of replicas; a flag that is not given is not set."""
    options = (
        click.option("--min-replicas", type=click.IntRange(1, 1000), help="Replicas at least. [default: 1]"),
        click.option("--max-replicas", type=click.IntRange(1, 1000), help="Replicas at most. [default: 4]"),
        click.option(
            "--queue",
            type=click.IntRange(1, 1000),
            help="Ongoing requests per replica to aim at; more of them add replicas. [default: 4]",
        ),
        click.option("--gpus", type=click.FloatRange(0, 64), help="GPUs of one replica; 0: none."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def taken(flags: dict[str, Any]) -> dict[str, Any]:
    """Remove these flags from ``flags`` and return those that were given.

    A minimum above the default maximum raises the maximum.
    """
    scale = given({name: flags.pop(name) for name in SCALE})
    if "max_replicas" not in scale and "min_replicas" in scale:
        scale["max_replicas"] = max(4, scale["min_replicas"])
    return scale
