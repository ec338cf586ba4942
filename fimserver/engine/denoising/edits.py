"""Edits: filled slots that take another token while their block is denoised.

Token-to-token editing (LLaDA 2.1): every step predicts the whole block; a filled slot takes the token that is
predicted for it where that differs and is likely enough. When nothing is masked any more, passes go on until
one edits nothing, or so many have been made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # bench/gpu runs the loop where only torch and transformers are installed
    from fimserver.canvas_card import Canvas as CanvasCard


@dataclass(frozen=True)
class Edits:
    """``level``: probability above which a token replaces another. ``steps``: passes over a full block."""

    level: float
    steps: int = 16

    @classmethod
    def of(cls, card: CanvasCard) -> Edits | None:
        """Make the rules that a card's model was trained with; ``None`` where it does not edit."""
        return None if card.edit_level is None else cls(card.edit_level, card.edit_steps)

    def replaces(self, old: int, new: int, probability: float) -> bool:
        """Whether a slot that has ``old`` takes ``new``."""
        return new != old and probability > self.level
