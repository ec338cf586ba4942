"""Token healing: takes back the last token of a prefix, which the first token of the middle spells again.

A tokenizer cuts ``return json`` into `` return`` and `` json``; a cursor after ``return `` leaves a token of
one blank that the model has hardly ever seen. So the prompt ends before it, and the first token must begin
with it (github.com/guidance-ai/guidance, "token healing"). One token alone is restricted, and it comes from
the row of the prompt, before anything is drafted: speculative decoding stays exact.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from fimserver.engine.prompts.vocabulary import Vocabulary

LOOKED_AT_CHARS = 200  # of the prefix: its last token depends on no more
KEPT_MASKS = 32


class TokenHealing:
    """Splits prefixes, and finds the tokens that a middle may begin with."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.allowed = lru_cache(KEPT_MASKS)(self._allowed)

    def held_back(self, prefix: str) -> str:
        """The end of ``prefix`` that the first token of the middle has to spell: a blank, or the last token.

        Empty where the prefix ends with a line or within a character. Of several blanks the last one, since
        tokenizers put one before a word and the others into a token of their own.
        """
        if not prefix or prefix[-1] in "\r\n":
            return ""
        held = prefix[-1]
        if held not in " \t":
            ids = self._vocabulary.encode(prefix[-LOOKED_AT_CHARS:])
            held = self._vocabulary.decode(ids[-1:])
        whole = bool(held) and prefix.endswith(held) and not {"\ufffd", "\n", "\r"} & set(held)
        return held if whole and self._vocabulary.by_text.beginning_with(held) else ""

    def _allowed(self, held: str, size: int, device: torch.device) -> torch.Tensor:
        """Mask (size,), true for the tokens whose text begins with ``held``."""
        mask = torch.zeros(size, dtype=torch.bool, device=device)
        mask[self._vocabulary.by_text.beginning_with(held)] = True
        return mask
