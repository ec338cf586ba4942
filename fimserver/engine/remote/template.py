"""FIM prompts as text, without a tokenizer, and the card that fits a remote model's name."""

from __future__ import annotations

import re
from functools import cache

from fimserver.cards import Card, Fim, read_cards
from fimserver.engine.remote.context import TextContext

_SIZE = re.compile(r"-\d+(?:\.\d+)?b.*$")


def raw_prompt(context: TextContext, fim: Fim) -> str:
    """Return the prompt of ``fim`` as text (FIM, arXiv 2207.14255).

    ``fim.start`` is left out, as servers add the first token of a text themselves.
    """
    header = _header(context, fim)
    middle = fim.middle or ""
    match fim.layout:
        case "psm":
            return f"{header}{fim.prefix}{context.prefix}{fim.suffix}{context.suffix}{middle}"
        case "spm":
            return f"{header}{fim.suffix}{context.suffix}{fim.prefix}{context.prefix}{middle}"
        case "spm_tail":
            return f"{header}{fim.prefix}{fim.suffix}{context.suffix}{middle}{context.prefix}"


def _header(context: TextContext, fim: Fim) -> str:
    """Return repository, snippets and file name in the order of local prompts."""
    header = ""
    if fim.repo and (context.repo or context.snippets):
        header += f"{fim.repo}{context.repo or 'workspace'}\n"
    if fim.file:
        header += "".join(f"{fim.file}{each.path}\n{each.text}\n" for each in context.snippets)
        if context.path and (header or not fim.repo):
            header += f"{fim.file}{context.path}\n"
    return header


def template_of(model: str) -> Fim | None:
    """Return the markers of the family that a model's name belongs to; ``None`` if no card has it."""
    card = card_like(model)
    return card.fim if card else None


def card_like(model: str) -> Card | None:
    """Return the card with the longest name, or else family, contained in a server's name of a model."""
    name = slug(model)
    cards = read_cards()
    exact = [card for card in cards.values() if card.fim and card.name in name]
    if exact:
        return max(exact, key=lambda card: len(card.name))
    family = max((stem for stem in _families() if stem in name), key=len, default="")
    return cards[_families()[family]] if family else None


def slug(text: str) -> str:
    """Reduce a name to lower-case letters, digits, ``.`` and ``-``."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")


@cache
def _families() -> dict[str, str]:
    """Return names of cards without their sizes, and a card of each."""
    return {_SIZE.sub("", card.name): card.name for card in read_cards().values() if card.fim}
