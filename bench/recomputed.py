"""How many prompt tokens a typed letter makes the model read again, in a file longer than the prompt.

python -m bench.recomputed MODELS/CARD/FILE.gguf [--tokens 512 1024 2048]
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path

from fimserver.cards import Card, get_card
from fimserver.engine.prompts.prompt import cut_context, fim_prompt
from fimserver.engine.prompts.vocabulary import Vocabulary
from fimserver.engine.weights.formats import WEIGHTS
from fimserver.lengths import common_prefix
from fimserver.types import Request

TYPED = "    result = [self._get_values(action, value) for value in values if value is not None]\n" * 2


def recomputed(card: Card, vocabulary: Vocabulary, tokens: int) -> list[int]:
    """Tokens after the first that differs from the prompt of the letter before, for each letter."""
    assert card.fim is not None
    text = (Path(os.__file__).parent / "argparse.py").read_text("utf-8")
    cut = text.find("\n", len(text) // 2) + 1
    before: list[int] = []
    found = []
    for count in range(len(TYPED) + 1):
        request = Request(text[:cut] + TYPED[:count], text[cut:], typed_chars=count)
        context = cut_context(request, card, vocabulary, tokens=tokens)
        prompt = fim_prompt(context, card.fim, vocabulary)
        found.append(len(prompt) - common_prefix(prompt, before))
        before = prompt
    return found[1:]


def main() -> None:
    """Print one line for each length of the prompt."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--tokens", type=int, nargs="+", default=(512, 1024, 2048))
    options = parser.parse_args()
    card = get_card(options.file.parent.name)
    vocabulary = Vocabulary(WEIGHTS["gguf"].read(card, options.file.parent).tokenizer(), card)
    for tokens in options.tokens:
        found = recomputed(card, vocabulary, tokens)
        print(
            f"prompts of {tokens} tokens, {len(found)} letters: median {statistics.median(found):.0f},"
            f" most {max(found)}, above 64: {sum(count > 64 for count in found)}"
        )


if __name__ == "__main__":
    main()
