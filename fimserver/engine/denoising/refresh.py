"""Refresh rules of the cache of full-attention canvases: when its keys and values are computed again.

``CACHES`` has them by name; options may follow a name, as in ``dual:8`` or ``checked:16,share=0.25,bound=1``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fimserver.engine.options import read_options
from fimserver.errors import InputError


@dataclass(frozen=True)
class Refresh:
    """When a whole pass replaces a pass of the canvas alone, and which rows the latter has.

    A whole pass is due every ``steps`` steps (1: no cache); when the share ``share`` of the canvas was filled
    since the last one; when the canvas has grown or shrunk by more than ``resized`` slots; or when the prefix
    differs by more than ``typed`` tokens. ``window``: tokens on both sides of the canvas that are computed
    with it. ``bound``: a middle is decoded again without cache if its exact score is lower by more than this,
    in nats per token; ``None``: it is not checked.
    """

    steps: int
    share: float
    resized: int
    typed: int
    window: int
    bound: float | None = None


def dual(steps: int = 16, share: float = 0.5, resized: int = 16, typed: int = 16, window: int = 0) -> Refresh:
    """Keep prefix and suffix between steps (Fast-dLLM's dual cache, arXiv 2505.22618)."""
    return Refresh(steps, share, resized, typed, window)


def checked(
    steps: int = 16,
    share: float = 0.5,
    resized: int = 16,
    typed: int = 16,
    window: int = 0,
    bound: float = 0.25,
) -> Refresh:
    """Do what ``dual`` does, with a last exact pass that may veto the middle."""
    return Refresh(steps, share, resized, typed, window, bound)


def none() -> None:
    """Run the whole sequence in every step."""


CACHES: Mapping[str, Callable[..., Refresh | None]] = {"none": none, "dual": dual, "checked": checked}


def read_cache(spec: str) -> Refresh | None:
    """Parse ``NAME``, ``NAME:STEPS`` or ``NAME:STEPS,option=value``. Raises ``InputError``."""
    name, _, text = spec.partition(":")
    if name not in CACHES:
        raise InputError(f"no canvas cache named {name!r}: use one of {', '.join(CACHES)}, as in dual:8")
    return CACHES[name](**read_options(f"canvas cache {name}", text, CACHES[name]))
