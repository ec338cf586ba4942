"""What a canvas shows so far: its text from the left, its slots one by one, and how sure the model was."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from fimserver.engine.denoising.denoiser import CanvasState
from fimserver.engine.denoising.tokens import Tokens
from fimserver.types import Slot

TINY = 1e-9  # least probability that is counted


def settled(state: CanvasState, tokens: Tokens) -> list[int]:
    """Ids from the left up to the first mask or end; none where any of them may still change."""
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
    """The canvas as text, slot by slot, up to its end; the first slot without ``held``.

    ``before``: ids of earlier blocks. ``piece``: text of a token.
    """
    slots = [Slot(piece(token), masked=False) for token in before]
    for i, token in enumerate(state.slots):
        if token == tokens.end:
            break
        masked = token == tokens.mask
        slots.append(Slot("" if masked else piece(token), masked, i in state.fresh))
    return without_held(slots, held)


def without_held(slots: Sequence[Slot], held: str) -> tuple[Slot, ...]:
    """Slots whose first one spells the end of the prefix again, without it."""
    if not (held and slots):
        return tuple(slots)
    return (replace(slots[0], text=slots[0].text[len(held) :]), *slots[1:])
