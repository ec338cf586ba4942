"""Knows how settings look on a command line. Knows nothing of commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args, get_origin

import click

from fimserver.settings import Settings, read_settings

Command = TypeVar("Command", bound=Callable[..., Any])


def settings_options(command: Command) -> Command:
    """A flag for every setting, with the setting's own words; what is not given is not set."""
    for name, field in reversed(Settings.model_fields.items()):
        kind: Any = str
        if get_origin(field.annotation) is Literal:
            kind = click.Choice(get_args(field.annotation))
        elif field.annotation in (int, float):
            kind = field.annotation
        default = "" if field.default in ("", None) else f" [default: {field.default}]"
        option = click.option(f"--{name.replace('_', '-')}", name, type=kind, help=f"{field.description}{default}")
        command = option(command)
    return command


def given(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given."""
    return {name: value for name, value in flags.items() if value is not None}


def settings_of(flags: dict[str, Any]) -> Settings:
    """Settings with the given flags on top. Raises ``InputError``."""
    return read_settings(**given(flags))
