"""Whether a file parses with a middle in it."""

from __future__ import annotations

from collections.abc import Iterator

from fimserver.ab.items.cuts import Hole
from fimserver.front.syntax import parser


def parses(language: str, prefix: str, middle: str, suffix: str, gold: str) -> bool | None:
    """Whether the function around the cursor parses with ``middle`` in it.

    It is taken from the file with ``gold``: the innermost multi-line function or class that parses by itself,
    else the whole text. ``None`` if none of them parses or the language is not supported.
    """
    known = parser.language_of(language)
    if known is None:
        return None
    text = prefix + gold + suffix
    start = len(prefix)
    end = len(prefix) + len(gold)
    for first, last in _around(known, text, start, end):
        if _is_sound(known, text[first:last]):
            return _is_sound(known, text[first:start] + middle + text[end:last])
    return None


def _around(language: str, text: str, start: int, end: int) -> Iterator[Hole]:
    """Yield the multi-line functions and classes around a span, innermost first, then the whole text."""
    owners = {block.owner for block in parser.blocks(language, text) if block.owner}
    inner = [
        owner for owner in owners if owner[0] <= start and end <= owner[1] and "\n" in text[slice(*owner)]
    ]
    yield from sorted(inner, key=lambda owner: owner[1] - owner[0])
    yield 0, len(text)


def _is_sound(language: str, text: str) -> bool:
    return not parser.breaks_syntax(language, "", text, "")
