"""Knows the filters for text that is there already: behind the cursor, above it, or in the text itself.

Knows nothing of syntax beyond brackets, quotes and lines. All filters here get whole drafts and cut or drop.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fimserver.front.postprocess.candidate import Candidate, FilterContext
from fimserver.front.syntax.brackets import CLOSERS, QUOTES, partners, unmatched
from fimserver.reasons import Reason

# A rest of the cursor's line that an editor or a person has put there to close what is open: as in Copilot and Tabby.
_CLOSING_REST = re.compile(r"\s*[)\]}\"'`;>]*\s*[:{;,]?\s*$")
# (longest period, tokens it must have filled at the end): the limits of Copilot's repetition filter.
_PERIODS = ((1, 10), (10, 30), (20, 45), (30, 60))
_TOKEN = re.compile(r"\w+|[^\w\s]+")
_MANY_LINES = 3
_TELLING_CHARS = 4  # word characters without which a line says nothing
_LONG_CHARS = 20  # a line as long may differ a little and still be the same one
_LINE_CHARS = 400  # of a line that is compared


# --- behind the cursor


def suffix_overlap(draft: Candidate, around: FilterContext) -> Candidate | Reason:
    """Text that goes on into what is right of or below the cursor: that part is replaced, or cut."""
    text = _cut_lines_below(draft.text, around)
    if draft.text.strip() and not text.strip():
        return Reason.DUPLICATE
    return fit(text, around.left, around.right)


def fit(text: str, left: str, right: str) -> Candidate:
    """A text between the two parts of the cursor's line, replacing as much of ``right`` as it has itself."""
    return Candidate(text, _covered(text, left, right))


def _covered(text: str, left: str, right: str) -> int:
    """How much of ``right`` stands in ``text`` already: its closers one after the other, or its head as the text's tail."""
    rest = right.rstrip()
    if not rest or not text:
        return 0
    if _CLOSING_REST.match(rest) and _has_in_order(text, rest):
        return len(rest)
    head, newline, _ = text.partition("\n")
    if newline and head.rstrip().endswith(rest) and _is_own(head.rstrip(), len(rest), left, right):
        return len(right)
    sizes = range(min(len(text), len(right)), 0, -1)
    return next((n for n in sizes if text.endswith(right[:n]) and _is_own(text, n, left, right)), 0)


def _has_in_order(text: str, rest: str) -> bool:
    """Whether the closers of ``rest`` stand in ``text`` in that order, none of them closing what ``text`` opened."""
    lone, at = set(unmatched(text)), 0
    for char in rest:
        if char.isspace():
            continue
        closer = char in CLOSERS or char in QUOTES
        found = next((i for i in range(at, len(text)) if text[i] == char and (i in lone or not closer)), -1)
        if found < 0:
            return False
        at = found + 1
    return True


def _is_own(text: str, size: int, left: str, right: str) -> bool:
    """Whether the last ``size`` characters of ``text`` are the ones of ``right``: whole words, and no closers of the text's."""
    cut = len(text) - size
    tail, before = text[cut:], (left + text[:cut])[-1:]
    if not tail.strip() or (_word(before) and _word(tail[0])) or (_word(tail[-1]) and _word(right[size : size + 1])):
        return False
    if any(tail.count(quote) % 2 and text[:cut].count(quote) % 2 for quote in QUOTES):
        return False
    return all(partner < 0 or partner >= cut for i, partner in partners(text)[0].items() if i >= cut)


def _word(char: str) -> bool:
    return char.isalnum() or char == "_"


def _cut_lines_below(text: str, around: FilterContext) -> str:
    """Cut at the line from which on the text repeats the lines below the cursor."""
    lines = text.split("\n")
    below = around.below
    for i in range(1, len(lines) if below else 0):
        if lines[i].rstrip() == below[0] and _repeats(lines, i, below):
            return "\n".join(lines[:i]).rstrip()
    return text


def _repeats(lines: Sequence[str], i: int, below: Sequence[str]) -> bool:
    """Whether the lines from ``i`` on are those below: all of them, or a first one that cannot be there by chance."""
    kept = "\n".join(lines[:i])
    tail = [line.rstrip() for line in lines[i:] if line.strip()]
    joined = "\n".join(lines)
    if any(
        0 <= partner <= len(kept) < at for at, partner in partners(joined)[0].items() if at <= len(kept) + 1 + len(lines[i])
    ):
        return False  # it closes what the text has opened
    return tail == list(below[: len(tail)]) or tail[0].strip()[0] in CLOSERS or len(tail[0].strip()) >= _LONG_CHARS


# --- above and below


def duplicate(draft: Candidate, around: FilterContext) -> Candidate | Reason:
    """Drop what begins with the next line or repeats the last ones."""
    lines = [line.rstrip() for line in (around.left + draft.text).split("\n") if line.strip()]
    if not draft.text.strip() or not lines or not _telling(lines[0]):
        return draft
    if around.below and not around.right.strip() and _same(lines[0], around.below[0]):
        return Reason.DUPLICATE
    if around.above[-len(lines) :] == lines:
        return Reason.DUPLICATE
    return draft


def _telling(line: str) -> bool:
    return sum(map(_word, line)) >= _TELLING_CHARS


def _same(line: str, other: str) -> bool:
    """Equal; if long, up to the indentation and one twentieth of the characters."""
    short = min(len(line.strip()), len(other.strip())) < _LONG_CHARS
    return line == other if short else within(line.strip(), other.strip(), max(1, len(other.strip()) // 20))


def within(a: str, b: str, limit: int) -> bool:
    """Whether the edit distance of two lines is at most ``limit``."""
    a, b = a[:_LINE_CHARS], b[:_LINE_CHARS]
    if abs(len(a) - len(b)) > limit:
        return False
    row = list(range(len(b) + 1))
    for i, char in enumerate(a, 1):
        # Outside of the band the distance is above the limit anyway.
        low, high = max(1, i - limit), min(len(b), i + limit)
        new = [limit + 1] * (len(b) + 1)
        new[0] = i
        for j in range(low, high + 1):
            new[j] = min(row[j] + 1, new[j - 1] + 1, row[j - 1] + (char != b[j - 1]))
        row = new
    return row[-1] <= limit


# --- in itself


def repetition(draft: Candidate, around: FilterContext) -> Candidate | Reason:
    """Cut at the first line or block that comes again at once; drop what ends in a loop of tokens."""
    lines = (around.left + draft.text).split("\n")
    end = next((end for i in range(len(lines)) if (end := _loop_at(lines, i))), 0)
    if end:
        draft = fit("\n".join(lines[:end])[len(around.left) :].rstrip(), around.left, around.right)
    return Reason.REPETITION if loops(_TOKEN.findall(draft.text)) else draft


def _loop_at(lines: Sequence[str], start: int) -> int:
    """The line behind the first round of a loop that starts at ``start``, or 0."""
    if not _telling(lines[start]):
        return 0
    if all(lines[start : start + 1] == lines[start + n : start + n + 1] for n in range(1, _MANY_LINES)):
        return start + 1
    for size in range(2, (len(lines) - start) // 2 + 1):
        block = lines[start : start + size]
        if block == lines[start + size : start + 2 * size] and sum(map(_telling, block)) > 1 and len(set(block)) > 1:
            return start + size
    return 0


def loops(tokens: Sequence[str]) -> bool:
    """Whether the last tokens are one short sequence over and over: the shortest period, by Knuth, Morris and Pratt."""
    return any(len(tokens) >= span and _period(tokens[-span:]) <= longest for longest, span in _PERIODS)


def _period(tokens: Sequence[str]) -> int:
    border = [0] * len(tokens)
    for i in range(1, len(tokens)):
        k = border[i - 1]
        while k and tokens[i] != tokens[k]:
            k = border[k - 1]
        border[i] = k + (tokens[i] == tokens[k])
    return len(tokens) - border[-1]
