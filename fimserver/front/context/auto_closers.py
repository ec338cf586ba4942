"""Auto-closed brackets and quotes: finds closers after the cursor that the editor inserted.

Editors pair brackets and quotes: typing ``f(`` gives ``f(|)``. With the suffix first in the prompt (SPM) that
is a new suffix and invalidates the whole KV cache (86 recomputed tokens per key on average instead of 2).
An inserted closer is recognised by its unclosed opener earlier on the same line.
"""

from __future__ import annotations

import re

_CLOSER = {"(": ")", "[": "]", "{": "}", '"': '"', "'": "'", "`": "`", '"""': '"""', "'''": "'''"}
_NO_QUOTE = re.compile(r"(?<=[<&])'(?=\w+\b(?!'))|(?<=\w{3})'(?=\w)")  # a lifetime as in &'a, and as in don't
_QUOTES = frozenset({'"', "'", "`", '"""', "'''"})


def paired_closers(left: str, right: str) -> str:
    """Longest start of ``right`` (rest of the line) that closes brackets and quotes open in ``left``."""
    open_ = _unclosed(_NO_QUOTE.sub("", left))
    at = 0
    while open_:
        opener = open_.pop()
        closers = _CLOSER[opener]
        # Some editors pair the third quote of three with one, others with three.
        count = next((n for n in range(len(closers), 0, -1) if right.startswith(closers[:n], at)), 0)
        if count:
            at += count
        elif opener in _QUOTES or not _inside_string(open_):
            break  # a bracket in a string may be plain text, as in ":("
    return right[:at]


def _unclosed(left: str) -> list[str]:
    """Openers without a closer, innermost last. Editors pair brackets in strings too, so those count."""
    open_: list[str] = []
    at = 0
    while at < len(left):
        char = left[at]
        if char == "\\":
            at += 2
            continue
        if char in "\"'`":
            quote = char * 3 if char != "`" and left.startswith(char * 3, at) and char not in open_ else char
            at += len(quote) - 1
            _quote(open_, quote)
        elif char in "([{":
            open_.append(char)
        elif char in ")]}" and open_ and _CLOSER[open_[-1]] == char:
            open_.pop()
        at += 1
    return open_


def _quote(open_: list[str], quote: str) -> None:
    """Add a quote: it opens a string, closes its own (and the brackets in it), or is text in another one."""
    begun = next((i for i in range(len(open_) - 1, -1, -1) if open_[i] in _QUOTES), None)
    if begun is None:
        open_.append(quote)
    elif open_[begun] == quote:
        del open_[begun:]


def _inside_string(open_: list[str]) -> bool:
    return any(opener in _QUOTES for opener in open_)
