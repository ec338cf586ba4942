"""Text of a report in which white space and hidden characters can be seen."""

from __future__ import annotations

import unicodedata

from markupsafe import Markup, escape

_JOINERS = "\u200d\ufe0e\ufe0f"  # of emoji: format characters that are shown as they are


def visible(text: str, right: int | None = None) -> Markup:
    """Return text with visible white space, shaded after ``right`` characters.

    No character can hide or reorder others.
    """
    text = text.replace("\r\n", "\n")
    right = len(text) if right is None else right
    lines = text[:right].split("\n")
    kept = [_marked(line) for line in lines[:-1]] + [
        _marked(lines[-1], ended=right >= len(text) or text[right] == "\n")
    ]
    off = [_marked(line) for line in text[right:].split("\n")] if right < len(text) else []
    end = Markup("<i>⏎</i>\n")
    shaded = Markup('<span class="off">{}</span>').format(end.join(off)) if off else Markup("")
    return end.join(kept) + shaded if text else Markup("<i>(nothing)</i>")


def _marked(line: str, *, ended: bool = True) -> Markup:
    """A line, or a part of one that goes on where it is not ``ended``: blanks at its end are marked."""
    body = line.rstrip(" ") if ended else line
    blanks = "\N{MIDDLE DOT}" * (len(line) - len(body))
    return Markup("").join(map(_shown, body)) + (Markup("<i>{}</i>").format(blanks) if blanks else Markup(""))


def _shown(character: str) -> Markup:
    if character == "\t":
        return Markup("<i>\N{RIGHTWARDS ARROW}</i>\t")
    if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"} and character not in _JOINERS:
        return Markup("<i>\\u{{{:x}}}</i>").format(ord(character))
    return escape(character)
