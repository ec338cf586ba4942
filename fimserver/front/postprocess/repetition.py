"""Filters for text that is there already: right of the cursor, below or above it, or in the text itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from fimserver.front.postprocess.candidate import Candidate, FilterContext
from fimserver.front.syntax.brackets import QUOTES, partners, unmatched
from fimserver.lengths import common_prefix
from fimserver.reasons import Reason
from fimserver.stopping.around import Around, lexemes_of, loops, period, telling
from fimserver.stopping.scan import CLOSES, state_after

# A rest of the cursor's line that an editor or a person has put there to close what is open: as in Copilot
# and Tabby.
_CLOSING_REST = re.compile(r"\s*[)\]}\"'`;>]*\s*[:{;,]?\s*$")
# (longest period, tokens it must have filled at the end): the limits of Copilot's repetition filter.
_LOOPING_CHARS = 60
_LOOP_CHARS = 10  # of a word
_MANY_LINES = 3
_LONG_CHARS = 20  # a line as long may differ a little and still be the same one
_ESCAPED = re.compile(r"\\[^\n]")
_MEANINGLESS = frozenset("\\\"'`")  # after a backslash
_CLOSERS_ONLY = re.compile(r"[)\]};,]*")
_LINE_CHARS = 400  # of a line that is compared

_Key = tuple[str, str]


# --- after the cursor


def suffix_overlap(candidate: Candidate, context: FilterContext) -> Candidate | Reason:
    """Replace or cut what is right of or below the cursor already, where the text goes on into it."""
    text = _cut_lines_below(candidate.text, context)
    if candidate.text.strip() and not text.strip():
        return Reason.DUPLICATE
    fitted = fit(text, context.left, context.right)
    # A newline after the rest of the line would come before the one that ends the line.
    is_covered = bool(context.right.strip()) and not context.right[fitted.replace :].strip()
    return replace(fitted, text=text.rstrip()) if is_covered else fitted


def fit(text: str, left: str, right: str) -> Candidate:
    """Fit a text between the two parts of the cursor's line.

    It replaces as much of ``right`` as it has itself.
    """
    return Candidate(text, _covered(text, left, right))


def _covered(text: str, left: str, right: str) -> int:
    """How much of ``right`` is in ``text`` already.

    Its closers one after the other, all of it, or a start of it at the end.
    """
    rest = right.rstrip()
    if not rest or not text.strip():
        return 0
    plain = _without_escaped_quotes(text, left)
    if _CLOSING_REST.match(rest) and _has_in_order(plain, rest):
        return len(rest)
    for end in [*(match.start() for match in re.finditer(r"\n", text)), len(text)]:
        head = plain[:end].rstrip()
        if (size := _tail_size(head, rest)) and _is_whole_rest(head, size, left):
            return len(right)
    sizes = range(min(len(text), len(right)), 0, -1)
    return next(
        (n for n in sizes if text.endswith(right[:n]) and _is_start_of_rest(plain, n, left, right)), 0
    )


def _without_escaped_quotes(text: str, left: str) -> str:
    """The text with blanks in the place of quotes that a backslash makes mere text. Same length."""
    slashes = len(left) - len(left.rstrip("\\"))
    masked = _ESCAPED.sub(
        lambda match: "  " if match[0][1] in _MEANINGLESS else match[0], "\\" * (slashes % 2) + text
    )
    return masked[slashes % 2 :]


def _has_in_order(text: str, rest: str) -> bool:
    """Whether ``text`` has the closers of ``rest`` in order, none for a bracket that it opened itself."""
    lone = set(unmatched(text))
    at = 0
    ends = {match.start() for match in re.finditer(r".(?=[ \t]*(?:\n|$))", text)}
    for char in rest:
        if char.isspace():
            continue
        places = lone if char in CLOSES or char in QUOTES else ends
        found = next((i for i in range(at, len(text)) if text[i] == char and i in places), -1)
        if found < 0:
            return False
        at = found + 1
    return True


def _tail_size(text: str, rest: str) -> int:
    """How many last characters of ``text`` are ``rest``, blanks aside; 0 if they are something else."""
    at = len(text)
    wanted = "".join(rest.split())
    for char in reversed(wanted):
        while at and text[at - 1] in " \t":
            at -= 1
        if not at or text[at - 1] != char:
            return 0
        at -= 1
    return len(text) - at


def _is_whole_rest(text: str, size: int, left: str) -> bool:
    """Whether the end of ``text`` is the rest of the line.

    A single character may be one of a word by chance.
    """
    cut = len(text) - size
    within_word = _is_word((left + text[:cut])[-1:]) and _is_word(text[cut])
    return (size > 1 or not within_word) and _closes_nothing(text, cut)


def _is_start_of_rest(text: str, size: int, left: str, right: str) -> bool:
    """Whether the last ``size`` characters of ``text`` are the first of ``right``.

    Whole words, and no closers of the text's.
    """
    cut = len(text) - size
    tail = text[cut:]
    before = (left + text[:cut])[-1:]
    if not tail.strip() or (_is_word(before) and _is_word(tail[0])):
        return False
    return not (_is_word(tail[-1]) and _is_word(right[size : size + 1])) and _closes_nothing(text, cut)


def _closes_nothing(text: str, cut: int) -> bool:
    """Whether what comes after ``cut`` closes nothing that the text opened before."""
    if any(text[cut:].count(quote) % 2 and text[:cut].count(quote) % 2 for quote in QUOTES):
        return False
    return all(partner < 0 or partner >= cut for i, partner in partners(text)[0].items() if i >= cut)


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_"


def _cut_lines_below(text: str, context: FilterContext) -> str:
    """Cut at the line from which on the text repeats the lines below the cursor."""
    lines = text.split("\n")
    below = list(map(_key, context.below))
    for i in range(1, len(lines) if below else 0):
        if lines[i].strip() and _key(lines[i]) == below[0] and _repeats(lines, i, below):
            return "\n".join(lines[:i]).rstrip()
    return _cut_next_line(text, context)


def _cut_next_line(text: str, context: FilterContext) -> str:
    """Cut the next line of an open bracket from the end of the text, where the text goes on into it."""
    last = context.below[0].strip() if context.below and not context.right.strip() else ""
    head = text.rstrip().removesuffix(last) if telling(last) else ""
    if not head or len(head) == len(text.rstrip()) or head[-1] not in " \t" or not head.strip():
        return text
    around = Around(context.prefix, context.suffix, context.language or "")
    state = state_after(head, around.language, around.state)
    return head.rstrip() if state.open[-1:] in {("(",), ("[",)} and not state.inside else text


def _repeats(lines: Sequence[str], i: int, below: Sequence[_Key]) -> bool:
    """Whether the lines from ``i`` on are those below.

    All of them, or first ones that cannot be there by chance.
    """
    kept = "\n".join(lines[:i])
    tail = [_key(line) for line in lines[i:] if line.strip()]
    closed = partners("\n".join(lines))[0].items()
    if any(0 <= partner <= len(kept) < at for at, partner in closed if at <= len(kept) + 1 + len(lines[i])):
        return False  # it closes what the text has opened
    first = tail[0][1]
    return _are_next(tail, below) or first[0] in CLOSES or len(first) >= _LONG_CHARS


# --- above and below


def duplicate(candidate: Candidate, context: FilterContext) -> Candidate | Reason:
    """Drop what begins with the next line or repeats the last ones."""
    lines = [line.rstrip() for line in (context.left + candidate.text).split("\n") if line.strip()]
    if not candidate.text.strip() or not lines:
        return candidate
    if context.below and not context.right.strip():
        is_next = telling(lines[0]) and _is_same(lines[0], context.below[0])
        if is_next or _are_next(list(map(_key, lines)), list(map(_key, context.below))):
            return Reason.DUPLICATE
    above = context.above[-len(lines) :]
    same_above = len(above) == len(lines) and above[0].strip() == lines[0].strip() and above[1:] == lines[1:]
    return Reason.DUPLICATE if same_above and telling(lines[0]) else candidate


def _key(line: str) -> _Key:
    """The indentation of a line, and what is in it, blanks aside."""
    return line[: len(line) - len(line.lstrip())], "".join(line.split())


def _are_next(lines: Sequence[_Key], below: Sequence[_Key]) -> bool:
    """Whether lines repeat the next ones: all of them or at least two, with more than closing brackets."""
    same = common_prefix(lines, below)
    return (same == len(lines) or same > 1) and any(
        not _CLOSERS_ONLY.fullmatch(text) for _, text in lines[:same]
    )


def _is_same(line: str, other: str) -> bool:
    """Equal, blanks within aside; if long, up to the indentation and one twentieth of the characters."""
    short = min(len(line.strip()), len(other.strip())) < _LONG_CHARS
    return (
        _key(line) == _key(other)
        if short
        else within(line.strip(), other.strip(), max(1, len(other.strip()) // 20))
    )


def within(a: str, b: str, limit: int) -> bool:
    """Whether the edit distance of two lines is at most ``limit``."""
    a = a[:_LINE_CHARS]
    b = b[:_LINE_CHARS]
    if abs(len(a) - len(b)) > limit:
        return False
    row = list(range(len(b) + 1))
    for i, char in enumerate(a, 1):
        # Outside of the band the distance is above the limit anyway.
        low = max(1, i - limit)
        high = min(len(b), i + limit)
        new = [limit + 1] * (len(b) + 1)
        new[0] = i
        for j in range(low, high + 1):
            new[j] = min(row[j] + 1, new[j - 1] + 1, row[j - 1] + (char != b[j - 1]))
        row = new
    return row[-1] <= limit


# --- in itself


def repetition(candidate: Candidate, context: FilterContext) -> Candidate | Reason:
    """Cut at the first line or block that comes again at once; drop what ends in a loop of tokens."""
    lines = (context.left + candidate.text).split("\n")
    end = next((end for i in range(len(lines)) if (end := _loop_at(lines, i))), 0)
    if end:
        candidate = fit("\n".join(lines[:end])[len(context.left) :].rstrip(), context.left, context.right)
    tokens = lexemes_of(candidate.text)
    is_loop = loops(tokens) or (bool(tokens) and _is_looping_word(tokens[-1]))
    return Reason.REPETITION if is_loop else candidate


def _loop_at(lines: Sequence[str], start: int) -> int:
    """The line after the first round of a loop that starts at ``start``, or 0."""
    if not telling(lines[start]):
        return 0
    if all(lines[start : start + 1] == lines[start + n : start + n + 1] for n in range(1, _MANY_LINES)):
        return start + 1
    for size in range(2, (len(lines) - start) // 2 + 1):
        block = lines[start : start + size]
        if (
            block == lines[start + size : start + 2 * size]
            and sum(map(telling, block)) > 1
            and len(set(block)) > 1
        ):
            return start + size
    return 0


def _is_looping_word(word: str) -> bool:
    """Whether a word that ends a text is a few letters over and over. Digits may be a number or a hash."""
    end = word[-_LOOPING_CHARS:]
    return len(end) == _LOOPING_CHARS and end.isalpha() and period(end) <= _LOOP_CHARS
