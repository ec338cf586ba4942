"""Prompts of the canvas adapter's training, made by the engine's code for one card.

An adapter is used with one order of prefix and suffix, and must be trained with the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fimserver.cards import Card, Fim
from fimserver.engine.prompts.healing import TokenHealing
from fimserver.engine.prompts.prompt import PromptTokens, fim_prompt
from fimserver.engine.prompts.vocabulary import Vocabulary
from fimserver.engine.weights.gguf import read_gguf
from fimserver.engine.weights.gguf_tokenizer import make_tokenizer

CHARS_PER_TOKEN = 8


@dataclass(frozen=True)
class CutPrompt:
    """Token ids of a prompt; ``prefix_at``: where its prefix begins.

    ``held``: the end of the prefix, which the middle spells again (token healing).
    """

    ids: tuple[int, ...]
    prefix_at: int
    held: str


class Prompts:
    """Prompts in the layout of a card, with token healing where the card has it."""

    def __init__(self, card: Card, vocabulary: Vocabulary) -> None:
        """Raises ``ValueError`` for a card without [fim] or without stop tokens."""
        if card.fim is None or not card.fim.stops:
            raise ValueError(f"{card.name} has no [fim] with stops: an adapter needs a coder's own card")
        self.fim: Fim = card.fim
        self.vocabulary = vocabulary
        self.healing = TokenHealing(vocabulary) if self.fim.heal else None
        self.end = vocabulary.special(self.fim.stops[0])

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        return self.vocabulary.encode(text)

    def cut(self, prefix: str, suffix: str, before: int, after: int) -> CutPrompt:
        """The prompt with the last ``before`` tokens of ``prefix`` and the first ``after`` of ``suffix``."""
        near = prefix[-before * CHARS_PER_TOKEN :]
        held = self.healing.held_back(near) if self.healing else ""
        kept = self.encode(near[: len(near) - len(held)])[-before:]
        following = self.encode(suffix[: after * CHARS_PER_TOKEN])[:after]
        ids = fim_prompt(PromptTokens(tuple(kept), tuple(following)), self.fim, self.vocabulary)
        prefix_at = len(ids) - len(kept) if self.fim.layout == "spm_tail" else 0
        return CutPrompt(tuple(ids), prefix_at, held)


def gguf_prompts(card: Card, path: Path) -> Prompts:
    """Prompts of a card with the tokenizer in a GGUF file."""
    file = read_gguf(path)
    return Prompts(card, Vocabulary(make_tokenizer(file.metadata, path.name), card))
