"""State of a middle between two of its lines, for the rules that end it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fimserver.languages import CLOSING_WORDS
from fimserver.stopping.around import Around, columns, first_word
from fimserver.stopping.scan import CLOSES, START, ScanState, scan


@dataclass(frozen=True)
class MiddleState:
    """Facts about the middle before the line that is being written."""

    start: int = 0  # offset of that line
    lines: tuple[str, ...] = ()  # whole lines before it; the first one begins with the text before the cursor
    state: ScanState = START
    deeper: bool = False  # some line was indented deeper than the block
    closed: int = 0  # brackets of the prefix that the middle has closed
    limit: int | None = None  # indentation of the cursor's block
    closing: bool = False  # the last line closed the block
    joined: int = 0  # lines of the suffix that the last lines repeat
    joined_at: int = 0  # offset of the first of them


def begin(around: Around) -> MiddleState:
    """Return the state before the first line."""
    return MiddleState(state=around.state, limit=_limit(around.left))


def content_of(progress: MiddleState, around: Around, line: str) -> str:
    """Return a line of the middle as in the file: the first one begins with the text before the cursor."""
    return line if progress.lines else around.left + line


def advance(progress: MiddleState, around: Around, line: str, rules: frozenset[str]) -> MiddleState:
    """Return the state after a whole line of the middle, given without its newline."""
    content = content_of(progress, around, line)
    state = progress.state
    closed = progress.closed
    for mark in scan(line + "\n", around.language, state):
        closed += mark.char in CLOSES and len(mark.state.open) < len(around.state.open) - closed
        state = mark.state
    limit = columns(content) if progress.limit is None and content.strip() else progress.limit
    deeper = bool(content.strip()) and limit is not None and columns(content) > limit
    closing = _closes_block(progress, around, state, closed) or _is_closing_word(
        progress, around, content, limit
    )
    return replace(
        progress,
        start=progress.start + len(line) + 1,
        lines=(*progress.lines, content),
        state=state,
        closed=closed,
        limit=limit,
        deeper=progress.deeper or deeper,
        closing=(closing or (progress.closing and not content.strip())) and "scope" in rules,
        **_joined(progress, around, content, rules),
    )


def _closes_block(before: MiddleState, around: Around, state: ScanState, closed: int) -> bool:
    """Whether a line closed a brace that was open at the cursor, without opening another."""
    left_open = len(around.state.open) - closed
    return closed > before.closed and len(state.open) == left_open and around.state.open[left_open] == "{"


def _is_closing_word(before: MiddleState, around: Around, content: str, limit: int | None) -> bool:
    """Whether a line is outside the block and begins with a word that closes it, such as ``end``."""
    words = CLOSING_WORDS.get(around.language, ())
    return (
        bool(before.lines) and limit is not None and columns(content) < limit and first_word(content) in words
    )


def _joined(before: MiddleState, around: Around, content: str, rules: frozenset[str]) -> dict[str, int]:
    """Return whether the line repeats the next line of the suffix, and where. Blank lines change nothing."""
    if not content.strip() or "suffix" not in rules or not around.below:
        return {}
    same = content.strip() == around.below[0].strip() and columns(content) == columns(around.below[0])
    fresh = bool(before.lines) or not around.left.strip()
    free = len(before.state.open) <= len(around.state.open) - before.closed
    return {"joined": int(same and fresh and free), "joined_at": before.start}


def _limit(left: str) -> int | None:
    """Indentation of the cursor's block, of the body after a header; ``None``: the first line decides."""
    if not left:
        return None
    return columns(left) + int(left.rstrip().endswith(":"))
