"""Token ids with a meaning on a canvas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # bench/gpu runs the loop where only torch and transformers are installed
    from fimserver.canvas_card import Canvas as CanvasCard
    from fimserver.engine.prompts.vocabulary import Vocabulary


@dataclass(frozen=True)
class Tokens:
    """Ids with a meaning on the canvas; ``None`` where the model has no such token."""

    mask: int
    end: int | None
    expand: int | None
    delete: int | None
    forbidden: tuple[int, ...]

    @classmethod
    def of(cls, card: CanvasCard, vocabulary: Vocabulary) -> Tokens:
        def maybe(text: str | None) -> int | None:
            return None if text is None else vocabulary.special(text)

        forbidden = dict.fromkeys((card.mask, *card.forbidden))
        return cls(
            vocabulary.special(card.mask),
            maybe(card.end),
            maybe(card.expand) if card.length == "expand" else None,
            maybe(card.delete) if card.length == "expand" else None,
            tuple(vocabulary.specials_of(forbidden)),
        )
