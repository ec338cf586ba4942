"""Prompts of ``bench.coder``, cut from the standard library: cold ones of any length, and holes by kind."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import NamedTuple

from fimserver.ab.items.cuts import holes
from fimserver.cards import get_card
from fimserver.engine.prompts.vocabulary import Vocabulary
from fimserver.engine.weights.formats import WEIGHTS

FILES = ("argparse", "ast", "dataclasses", "functools", "inspect", "subprocess", "typing", "zipfile")
MARKERS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
SUFFIX_TOKENS = 256
HOLE_PROMPT_TOKENS = 512
# By kind: the cut of ``fimserver ab``, and the fewest and most tokens that are written in its place.
KINDS: Mapping[str, tuple[str, int, int]] = {
    "line": ("line_rest", 4, 12),
    "multi_line": ("block", 24, 48),
    "body": ("body", 48, 96),
}


class HolePrompt(NamedTuple):
    """A prompt at a hole, the text around it, and how many tokens are written: those of the hole at most."""

    kind: str
    ids: list[int]
    prefix: list[int]
    suffix: list[int]
    tokens: int


class Prompts:
    """Cuts prompts for the model of one GGUF file."""

    def __init__(self, file: Path) -> None:
        card = get_card(file.parent.name)
        self._vocabulary = Vocabulary(WEIGHTS["gguf"].read(card, file.parent).tokenizer(), card)
        self._prefix, self._suffix, self._middle = map(self._vocabulary.special, MARKERS)
        self._folder = Path(os.__file__).parent

    def cold(self, number: int, longest: int) -> list[int]:
        """A prompt of ``longest`` tokens from file ``number``; shorter ones are its end (``cut``)."""
        text = self._vocabulary.encode(self._text(number))
        at = len(text) // 2
        before = text[at - longest + SUFFIX_TOKENS + 3 : at]
        after = text[at + 30 : at + 30 + SUFFIX_TOKENS]
        return [self._prefix, *before, self._suffix, *after, self._middle][-longest:]

    def typed(self, prompt: list[int], token: int) -> dict[str, list[int]]:
        """The prompt of the same cursor after one more token was typed, and the text around it."""
        start, end = prompt.index(self._suffix), prompt.index(self._middle)
        prefix = [*prompt[1:start], token]
        return {"ids": [*prompt, token], "prefix": prefix, "suffix": prompt[start + 1 : end]}

    def next_token(self, number: int) -> int:
        """Return the token of file ``number`` after the cursor of its cold prompts."""
        text = self._vocabulary.encode(self._text(number))
        return text[len(text) // 2]

    def hole(self, number: int, kind: str) -> HolePrompt:
        """A hole of a kind in file ``number``, in its middle half where there is one."""
        text = self._text(number)
        cut_kind, least, most = KINDS[kind]
        found = holes("python", text, Random(number))[cut_kind]
        middles = sorted(found, key=lambda hole: abs(hole[0] - len(text) / 2) > len(text) / 4)
        for start, end in middles:
            tokens = len(self._vocabulary.encode(text[start:end]))
            if tokens >= least:
                break
        after = self._vocabulary.encode(text[end : end + 8 * SUFFIX_TOKENS])[:SUFFIX_TOKENS]
        room = HOLE_PROMPT_TOKENS - len(after) - 3
        before = self._vocabulary.encode(text[max(0, start - 8 * room) : start])[-room:]
        ids = [self._prefix, *before, self._suffix, *after, self._middle]
        return HolePrompt(kind, ids, before, after, min(tokens, most))

    def _text(self, number: int) -> str:
        return (self._folder / f"{FILES[number]}.py").read_text("utf-8")


def cut(prompt: list[int], length: int) -> list[int]:
    """The same cursor with less before it: the marker of the prefix, then the prompt's end."""
    return [prompt[0], *prompt[len(prompt) - length + 1 :]]
