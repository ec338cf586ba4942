"""IPython magics: commands in a cell that are not Python (``%time``, ``!pip``, ``%%bash``, ``name?``)."""

from __future__ import annotations

import re

# Matches ``x = !ls`` and ``x = %sql …`` too.
_MAGIC = re.compile(
    r"^([ \t]*)(?:(?:[\w, ]+=[ \t]*)?(?:!|%%?\w)|\?{1,2}\w)[^\n]*|^([ \t]*)[\w.]+\?{1,2}[ \t]*$", re.MULTILINE
)
_OTHER_LANGUAGE = re.compile(r"\s*%%(?!(?:time|timeit|capture|prun|python3?|memit)\b)\w")


def is_other_language(text: str) -> bool:
    """Whether a cell begins with a magic that makes the rest of it another language (``%%bash``)."""
    return _OTHER_LANGUAGE.match(text) is not None


def without_magics(prefix: str, middle: str, suffix: str) -> tuple[str, str, str]:
    """Replace every magic of a cell by a number, padded with blanks to the same length."""
    text = prefix + middle + suffix
    plain = _MAGIC.sub(_number, text)
    end = len(prefix) + len(middle)
    return plain[: len(prefix)], plain[len(prefix) : end], plain[end:]


def _number(match: re.Match[str]) -> str:
    blanks = match[1] if match[1] is not None else match[2]
    return f"{blanks}0".ljust(len(match[0]))
