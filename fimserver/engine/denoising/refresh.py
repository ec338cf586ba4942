"""Rules of a cache for canvases that their context sees: when its keys and values are computed again.

``CACHES`` names the kinds; a name may be followed by options, as in ``dual:8`` or
``checked:16,share=0.25,bound=1``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fimserver.engine.options import read_options
from fimserver.errors import InputError


@dataclass(frozen=True)
class Refresh:
    """When a whole pass replaces a pass of the canvas alone, and how far the latter reaches.

    ``steps``: a whole pass at every so many steps; 1 is no cache. ``share``: one where so large a part of the
    canvas was filled since the last. ``resized``: one where the canvas has grown or shrunk by more slots than
    this. ``typed``: one where the prefix differs by more tokens than this. ``window``: so many tokens on both
    sides of the canvas are computed with it. ``bound``: a middle is decoded again without cache where its
    exact score is lower by more than this, in nats a token; ``None``: not looked at.
    """

    steps: int
    share: float
    resized: int
    typed: int
    window: int
    bound: float | None = None


def dual(steps: int = 16, share: float = 0.5, resized: int = 16, typed: int = 16, window: int = 0) -> Refresh:
    """Prefix and suffix are kept between steps (Fast-dLLM's dual cache, arXiv 2505.22618)."""
    return Refresh(steps, share, resized, typed, window)


def checked(
    steps: int = 16,
    share: float = 0.5,
    resized: int = 16,
    typed: int = 16,
    window: int = 0,
    bound: float = 0.25,
) -> Refresh:
    """Like ``dual``, with a last exact pass that may veto the middle."""
    return Refresh(steps, share, resized, typed, window, bound)


def none() -> None:
    """Every step reads the whole sequence."""


CACHES: Mapping[str, Callable[..., Refresh | None]] = {"none": none, "dual": dual, "checked": checked}


def read_cache(spec: str) -> Refresh | None:
    """The rules of ``NAME``, ``NAME:STEPS`` or ``NAME:STEPS,option=value``. Raises ``InputError``."""
    name, _, text = spec.partition(":")
    if name not in CACHES:
        raise InputError(f"no canvas cache named {name!r}: use one of {', '.join(CACHES)}, as in dual:8")
    return CACHES[name](**read_options(f"canvas cache {name}", text, CACHES[name]))
