"""Views of a canvas: its settled text, its slots as text, and the model's confidence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from fimserver.engine.denoising.denoiser import CanvasState
from fimserver.engine.denoising.tokens import Tokens
from fimserver.types import Slot

TINY = 1e-9  # lower bound of probabilities, whose logarithm is taken


def settled(state: CanvasState, tokens: Tokens) -> list[int]:
    """Return the ids before the first mask or end token; none if any of them may still change."""
    if state.unsettled:
        return []
    for i, token in enumerate(state.slots):
        if token in {tokens.mask, tokens.end}:
            return state.slots[:i]
    return state.slots


def confidence(state: CanvasState, tokens: Tokens) -> float | None:
    """Return the geometric mean of the probabilities at which a block's text was committed."""
    count = len(settled(state, tokens))
    found = [max(p, TINY) for slot, p in state.confidence.items() if slot < count]
    return math.exp(math.fsum(map(math.log, found)) / len(found)) if found else None


def canvas_view(
    before: Sequence[int], state: CanvasState, tokens: Tokens, piece: Callable[[int], str], held: str
) -> tuple[Slot, ...]:
    """Return the canvas as text, slot by slot, up to its end token; the first slot without ``held``.

    ``before``: ids of earlier blocks. ``piece``: decodes a token.
    """
    slots = [Slot(piece(token), masked=False) for token in before]
    for i, token in enumerate(state.slots):
        if token == tokens.end:
            break
        masked = token == tokens.mask
        slots.append(Slot("" if masked else piece(token), masked, i in state.fresh))
    return without_held(slots, held)


def without_held(slots: Sequence[Slot], held: str) -> tuple[Slot, ...]:
    """Remove ``held``, the end of the prefix that token healing repeats, from the first slot."""
    if not (held and slots):
        return tuple(slots)
    return (replace(slots[0], text=slots[0].text[len(held) :]), *slots[1:])
