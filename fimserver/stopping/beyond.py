"""Signs that a middle goes on to what was not asked for, or repeats what is there."""

from __future__ import annotations

import re

from fimserver.languages import COMMENT_MARKS
from fimserver.stopping.around import Around, columns
from fimserver.stopping.middle_state import MiddleState

FENCE = "```"
# Languages and extensions of files in which a fence may be meant.
_PROSE = frozenset({"", "markdown", "md", "mdx", "text", "txt", "rst", "adoc", "org", "tex", "ipynb"})
_DEFINITION = re.compile(
    r"@\w|(?:(?:export|default|declare|public|private|protected|internal|static|abstract|final|override|async"
    r"|unsafe|local|pub(?:\([^)\n]*\))?)[ \t]+)*"
    r"(?:def|class|func|function|fn|interface|struct|enum|trait|impl|module|namespace)\b"
)
_COMMENT_STARTS = ("/*", "*", "///")
_SENTENCE = re.compile(r"[^.!?\n]+(?:[.!?]+(?=\s|$))?")
_SENTENCE_WORDS = 3  # of a sentence that does not come again by chance


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


def held_back(progress: MiddleState, around: Around, line: str, rules: frozenset[str]) -> int:
    """Return how many last characters may become the rest of the cursor's line, or a sentence again."""
    right = around.right if "suffix" in rules and not progress.lines and around.left.strip() else ""
    sizes = range(min(len(line), len(right)), 0, -1)
    joined = next((size for size in sizes if line.endswith(right[:size])), 0)
    again = again_at(progress, around, line, whole=False) if "repetition" in rules else None
    return joined if again is None else max(joined, progress.start + len(line) - again)


def again_at(progress: MiddleState, around: Around, line: str, *, whole: bool) -> int | None:
    """Return where a line of prose begins to repeat one of its sentences; ``None`` if it does not.

    The offset counts from the middle's begin. ``whole``: all of the sentence was written.
    """
    if around.language not in _PROSE:
        return None
    left = "" if progress.lines else around.left
    said = list[str]()
    for match in _SENTENCE.finditer(left + line):
        sentence = match[0].strip()
        if match.start() >= len(left) and _is_again(sentence, said, whole=whole):
            return progress.start + len(line[: match.start() - len(left)].rstrip())
        said.append(sentence)
    return None


def _is_again(sentence: str, said: list[str], *, whole: bool) -> bool:
    """Whether a sentence is one that was said, or with ``whole`` false may become one."""
    if whole:
        return len(sentence.split()) >= _SENTENCE_WORDS and sentence[-1] in ".!?" and sentence in said
    return any(other.startswith(sentence) for other in said)
