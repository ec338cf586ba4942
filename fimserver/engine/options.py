"""Options of a plug-in, written after its name: ``4``, ``0.9,limit=16``, ``self,steps=2``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from fimserver.errors import InputError


def read_options(owner: str, text: str, maker: Callable[..., object]) -> dict[str, Any]:
    """Parse keyword arguments for ``maker``; a part without ``=`` is its first parameter with a default.

    Values get the type of the parameter's default. Raises ``InputError`` with the options that ``owner``
    takes.
    """
    parameters = {
        name: p.default for name, p in inspect.signature(maker).parameters.items() if p.default is not p.empty
    }
    found: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        name, value = (name.strip(), value.strip()) if equals else (_first(maker), part)
        if name not in parameters or name in found:
            known = ", ".join(f"{name}={default!r}" for name, default in parameters.items()) or "no options"
            raise InputError(f"{owner} does not understand {part!r}: it takes {known}")
        try:
            found[name] = type(parameters[name])(value)
        except ValueError:
            kind = type(parameters[name]).__name__
            raise InputError(
                f"{owner}: {name} must be of type {kind}, such as {parameters[name]!r}, got {value!r}"
            ) from None
        if isinstance(found[name], int | float) and not found[name] > 0:
            raise InputError(f"{owner}: {name} must be above 0, got {value}")
    return found


def _first(maker: Callable[..., object]) -> str:
    """Return the first parameter that may be given without its name."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD,)
    names = (
        name
        for name, p in inspect.signature(maker).parameters.items()
        if p.kind in kinds and p.default is not p.empty
    )
    return next(names, "")
