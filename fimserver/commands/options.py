"""Command-line options and the table of settings, both made from ``settings``.

``python -m fimserver.commands.options`` prints the table of docs/settings.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar, get_args, get_origin

import annotated_types
import click
from pydantic.fields import FieldInfo

from fimserver.settings import CONFIG_FILE, Scope, Settings, read_settings, scope_of

Command = TypeVar("Command", bound=Callable[..., Any])
SCOPES: dict[Scope, str] = {
    "request": "each request",
    "weights": "model, engine and host",
    "engine": "engine and host",
    "host": "host",
    "window": "window",
}


def settings_options(*shown: str) -> Callable[[Command], Command]:
    """Add a flag for every setting; a flag that is not given is not set.

    ``shown``: scopes and names of the settings that the command's help lists; the others are accepted, too.
    """

    def add(command: Command) -> Command:
        for name, field in reversed(Settings.model_fields.items()):
            hidden = not {name, scope_of(name)} & set(shown)
            command = click.option(flag(name), name, type=_kind(field), help=_help(field), hidden=hidden)(
                command
            )
        return command

    return add


def _kind(field: FieldInfo) -> Any:
    if get_origin(field.annotation) is Literal:
        return click.Choice(get_args(field.annotation))
    return field.annotation if field.annotation in (int, float) else str


def _help(field: FieldInfo) -> str:
    notes = "; ".join(note for note in (bounds(field), _default(field)) if note)
    return f"{field.description} [{notes}]" if notes else field.description or ""


def where_settings_are() -> str:
    """Return the last lines of a command's help: other ways to give settings, and where all are listed."""
    return (
        f"\b\nSettings may also be given as FIMSERVER_… variables and in\n{CONFIG_FILE}.\nAll of them:"
        " docs/settings.md."
    )


def flag(name: str) -> str:
    """The flag of a setting."""
    return f"--{name.replace('_', '-')}"


def _default(field: FieldInfo) -> str:
    return "" if field.default in ("", None) else f"default: {field.default}"


def bounds(field: FieldInfo) -> str:
    """The values that a setting may have, such as ``1 to 1024`` or ``above 0``.

    Empty where its type says it.
    """
    low = next((f"{m.ge:g}" for m in field.metadata if isinstance(m, annotated_types.Ge)), "")
    above = next((f"above {m.gt:g}" for m in field.metadata if isinstance(m, annotated_types.Gt)), "")
    high = next((f"{m.le:g}" for m in field.metadata if isinstance(m, annotated_types.Le)), "")
    below = next((f"{int(str(m.lt)) - 1}" for m in field.metadata if isinstance(m, annotated_types.Lt)), "")
    low = low or above
    high = high or below
    return f"{low} to {high}" if low and high else low or high


def table() -> Iterator[str]:
    """Lines of the table of settings, in Markdown."""
    yield "| option | default | values | changes | meaning |"
    yield "| --- | --- | --- | --- | --- |"
    for name, field in Settings.model_fields.items():
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        values = ", ".join(f"`{choice}`" for choice in choices) or bounds(field)
        default = "" if field.default in ("", None) or name == "models_dir" else f"`{field.default}`"
        yield f"| `{flag(name)}` | {default} | {values} | {SCOPES[scope_of(name)]} | {field.description} |"


def given(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given."""
    return {name: value for name, value in flags.items() if value is not None}


def settings_of(flags: dict[str, Any]) -> Settings:
    """Settings with the given flags on top. Raises ``InputError``."""
    return read_settings(**given(flags))


if __name__ == "__main__":
    print("\n".join(table()))
