"""Makes white space and hidden characters visible in texts of a report."""

from __future__ import annotations

import unicodedata

from markupsafe import Markup, escape

_JOINERS = "\u200d\ufe0e\ufe0f"  # format characters of emoji, which stay unchanged


def visible(text: str, right: int | None = None) -> Markup:
    """Return text with visible white space, shaded after ``right`` characters.

    Control and format characters are escaped, so that none can hide or reorder others.
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
    """Mark the blanks at the end of a line; not those of a part that continues (``ended`` is false)."""
    body = line.rstrip(" ") if ended else line
    blanks = "\N{MIDDLE DOT}" * (len(line) - len(body))
    return Markup("").join(map(_shown, body)) + (Markup("<i>{}</i>").format(blanks) if blanks else Markup(""))


def _shown(character: str) -> Markup:
    if character == "\t":
        return Markup("<i>\N{RIGHTWARDS ARROW}</i>\t")
    if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"} and character not in _JOINERS:
        return Markup("<i>\\u{{{:x}}}</i>").format(ord(character))
    return escape(character)
