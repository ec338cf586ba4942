"""Features of a cursor: properties of the text around it, and how many lines to expect there.

Only a few lines before and after the cursor are read, so the cost does not grow with the file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from fimserver.front.syntax import brackets, parser
from fimserver.front.syntax.crop import near
from fimserver.front.syntax.languages import BLOCK_WORDS, COLON_BLOCKS
from fimserver.stopping.around import columns
from fimserver.types import Features

LINES_BEFORE = 80
LINES_AFTER = 30
UNIT_LINES = 1000  # of a file that are read for its indentation unit
_UNITS = frozenset({"\t", "  ", "   ", "    ", "        "})

BODY_LINES = 5  # expected in an empty block
BLOCK_LINES = 3  # expected at the start of a block that is not empty
BLANK_LINES = 2  # expected on a blank line: a statement, perhaps more

_CLOSING = " \t\r)]}>\"'`,;:"
_UNFINISHED = re.compile(
    r"(?:[-+*/%=&|^<>.,(\[{\\~]|\b(?:and|or|not|in|is|if|else|return|new|await|import|from|as|case))$"
)


def features(language: str | None, prefix: str, suffix: str) -> Features:
    """Return the features of the cursor between ``prefix`` and ``suffix``."""
    prefix, suffix = near(prefix, suffix, LINES_BEFORE, LINES_AFTER)
    place = parser.place(language, prefix, suffix)
    code = parser.code_only(language, prefix + suffix)
    before = code[: len(prefix)]
    after = code[len(prefix) :]
    left = prefix.rsplit("\n", 1)[-1]
    right = suffix.split("\n", 1)[0]
    blank = not left.strip()
    opened = place == "code" and _opens_block(language, before)
    arguments = place == "code" and _in_arguments(before)
    right_text = bool(right.strip(_CLOSING))
    empty = opened and not right_text and _body_is_empty(prefix, suffix)
    return Features(
        language=language or "",
        place=place,
        block_opened=opened,
        in_arguments=arguments,
        statement_end=place == "code"
        and not (blank or opened or arguments)
        and _ends_statement(language, prefix),
        empty_body=empty,
        blank_line=blank,
        right_text=right_text,
        indentation=columns(left),
        bracket_debt=brackets.debt(before, after),
        mid_word=bool(re.search(r"\w$", left) and re.match(r"\w", right)),
        expected_lines=_expected(
            place, empty=empty, opened=opened, blank=blank, inside=arguments or right_text
        ),
    )


def indent_unit(lines: Sequence[str], default: str = "    ") -> str:
    """Indentation unit of a file: the most frequent step between lines, or ``default`` if there is none."""
    steps: Counter[str] = Counter()
    before = ""
    for line in lines[:UNIT_LINES]:
        if line.strip():
            blanks = line[: len(line) - len(line.lstrip(" \t"))]
            step = blanks.removeprefix(before) if blanks.startswith(before) else ""
            steps.update([step] if step in _UNITS else [])
            before = blanks
    return steps.most_common(1)[0][0] if steps else default


def opens_block(language: str | None, line: str) -> bool:
    """Whether a line, with strings and comments blanked out, ends by opening a block."""
    line = line.strip()
    if line.endswith("{") or (line.endswith(":") and (language is None or language in COLON_BLOCKS)):
        return True
    return any(re.search(pattern, line) for pattern in BLOCK_WORDS.get(language or "", ()))


def _expected(place: str, *, empty: bool, opened: bool, blank: bool, inside: bool) -> int:
    """Expected lines: one in strings, comments, brackets and before text, else more for emptier blocks."""
    if place != "code" or inside:
        return 1
    if empty:
        return BODY_LINES
    return BLOCK_LINES if opened else BLANK_LINES if blank else 1


def _opens_block(language: str | None, before: str) -> bool:
    """Whether the cursor's line opens a block, or, if it is blank and not dedented, the last line above."""
    *above, line = before.split("\n")
    if line.strip():
        return opens_block(language, line)
    header = next((text for text in reversed(above) if text.strip()), "")
    # Column 0 on a blank line is not a dedent: the editor may not have indented it yet.
    return opens_block(language, header) and (line == "" or columns(line) >= columns(header))


def _in_arguments(before: str) -> bool:
    """Whether the innermost open bracket is round, square, or the brace of a literal (not of a block)."""
    open_ = brackets.partners(before)[1]
    if not open_:
        return False
    last = open_[-1]
    head = before[:last].rstrip()
    return before[last] in "([" or bool(re.search(r"(?:[(\[,:?]|(?<![=<>!])=|\breturn)$", head))


def _body_is_empty(prefix: str, suffix: str) -> bool:
    """Whether the next line after the cursor is not indented deeper than the header before it."""
    header = next((line for line in reversed(prefix.split("\n")) if line.strip()), "")
    following = next((line for line in suffix.split("\n")[1:] if line.strip()), None)
    return following is None or columns(following) <= columns(header)


def _ends_statement(language: str | None, prefix: str) -> bool:
    """Whether the statement is complete: by its last characters, then by parsing it with a line end added."""
    left = prefix.rsplit("\n", 1)[-1].rstrip()
    if language is None:
        return left.endswith((".", ";", "!", "?"))
    if _UNFINISHED.search(left) or left.endswith(":"):
        return False
    start = len(prefix) - len(prefix.rsplit("\n", 1)[-1])
    return left.endswith((";", "}")) or not parser.breaks_syntax(language, prefix[:start], left, "\n")
