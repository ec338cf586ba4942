"""Token-to-token editing (LLaDA 2.1): filled slots take other tokens while their block is denoised.

Every step predicts the whole block; a filled slot takes its predicted token if that differs and is likely
enough. When no slot is masked, passes continue until one edits nothing, or to a limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # bench/gpu runs the loop where only torch and transformers are installed
    from fimserver.canvas_card import Canvas as CanvasCard


@dataclass(frozen=True)
class Edits:
    """Rules of editing.

    ``level``: probability above which a token replaces another. ``steps``: most passes over a filled block.
    """

    level: float
    steps: int = 16

    @classmethod
    def of(cls, card: CanvasCard) -> Edits | None:
        """Return the rules of a card's model; ``None`` if it does not edit."""
        return None if card.edit_level is None else cls(card.edit_level, card.edit_steps)

    def replaces(self, old: int, new: int, probability: float) -> bool:
        """Whether token ``new`` replaces ``old``."""
        return new != old and probability > self.level
