"""Signs that a middle goes on to what was not asked for: a second definition, the end of an answer."""

from __future__ import annotations

import re

from fimserver.languages import COMMENT_MARKS
from fimserver.stopping.around import Around, columns
from fimserver.stopping.middle_state import MiddleState

FENCE = "```"
_PROSE = frozenset({"", "markdown", "text"})  # languages in whose files a fence may be meant
_DEFINITION = re.compile(
    r"@\w|(?:(?:export|default|declare|public|private|protected|internal|static|abstract|final|override|async"
    r"|unsafe|local|pub(?:\([^)\n]*\))?)[ \t]+)*"
    r"(?:def|class|func|function|fn|interface|struct|enum|trait|impl|module|namespace)\b"
)
_COMMENT_STARTS = ("/*", "*", "///")


def is_fence(progress: MiddleState, around: Around, line: str) -> bool:
    """Whether a line closes a Markdown code block, as models that chat do after code.

    In files of code alone, and only if the text before the cursor has no such block.
    """
    if around.language in _PROSE or progress.state.inside or FENCE in around.prefix:
        return False
    return line.strip().startswith(FENCE)


def has_defined(progress: MiddleState, around: Around) -> bool:
    """Whether the middle has written a whole definition, such as a function, at the cursor's indentation."""
    if not progress.deeper or progress.state.inside or progress.limit is None or around.left.strip():
        return False
    if len(progress.state.open) > len(around.state.open) - progress.closed:
        return False  # within a bracket of the middle
    return any(columns(line) == progress.limit and _DEFINITION.match(line.strip()) for line in progress.lines)


def is_next_definition(progress: MiddleState, around: Around, line: str) -> bool:
    """Whether a line begins another definition after one that the middle has written."""
    begins = columns(line) == progress.limit and bool(_DEFINITION.match(line.strip()))
    return begins and has_defined(progress, around)


def code_end(progress: MiddleState, around: Around) -> int:
    """Return how many characters of the middle come before the comments that end its whole lines."""
    lines = list(progress.lines)
    mark = COMMENT_MARKS.get(around.language, "")
    starts = (mark, *_COMMENT_STARTS) if mark else _COMMENT_STARTS
    while lines and (not lines[-1].strip() or lines[-1].strip().startswith(starts)):
        lines.pop()
    return max(0, len("\n".join(lines).rstrip()) - len(around.left))
