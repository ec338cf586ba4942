"""Indentation: where the first line of a text begins, and which blanks its lines are indented by."""

from __future__ import annotations

import math
import re
from dataclasses import replace

from fimserver.front.postprocess.candidate import Candidate, FilterContext
from fimserver.front.syntax import parser
from fimserver.front.syntax.brackets import debt
from fimserver.front.syntax.crop import near
from fimserver.front.syntax.features import opens_block
from fimserver.front.syntax.languages import INDENTATION
from fimserver.reasons import Reason
from fimserver.stopping.around import columns

_LINES_ABOVE = 30  # that are searched for open brackets
_BLANKS = re.compile(r"[ \t]*")


# --- the first line


def leading(candidate: Candidate, context: FilterContext) -> Candidate | Reason:
    """Let the first line begin at the cursor.

    No newline before it on a blank line, and no blanks that are there already.
    """
    text = candidate.text
    left = context.left
    if left.strip():
        return replace(candidate, text=text.lstrip(" ")) if left[-1] in " \t" and text.strip() else candidate
    line = re.sub(r"^(?:[ \t]*\n)+", "", text)
    if line != text:
        # Before other code a newline is meant; and a line that begins left of the cursor cannot be on the
        # cursor's line.
        if context.right.strip() or not line.startswith(left):
            return candidate
        text = line
    blanks = _blanks(text)
    if not blanks or not text.strip():
        return replace(candidate, text=text)
    return replace(candidate, text=_first_blanks(text, context) + text[len(blanks) :])


def _first_blanks(text: str, context: FilterContext) -> str:
    """What remains of the blanks that a text begins with on a line that has only blanks before the cursor."""
    blanks = _blanks(text)
    left = context.left
    if not left:
        return "" if _is_stray(text, context) else blanks
    if not _is_level(columns(left), context) and _is_level(columns(left + blanks), context):
        return blanks  # the cursor is within the indentation
    above = _code_above(context).rsplit("\n", 1)[-1]
    if not opens_block(context.language, above) or columns(left) > columns(above):
        return ""
    # The editor did not indent the first line of a block. Models count from the margin, rarely from the
    # cursor.
    return blanks.removeprefix(left) or blanks


def _is_level(width: int, context: FilterContext) -> bool:
    """Whether a block around the cursor is indented by so many columns.

    One of the lines above, or the next one.
    """
    widths = [columns(line) for line in [*context.above, *context.below[:1]]]
    return width in widths


def _is_stray(text: str, context: FilterContext) -> bool:
    """Whether blanks at the start of an empty line make no block.

    A single one, or in Python where none is open.
    """
    if context.language is None or not re.match(r"[ \t]+[\w@]", text):
        return False
    if parser.place(context.language, context.prefix, context.suffix) != "code":
        return False
    if _blanks(text) == " ":
        return True
    code = _code_above(context)
    above = code.rsplit("\n", 1)[-1]
    is_open = columns(above) > 0 or opens_block(context.language, above) or above.endswith("\\")
    return context.language == "python" and not is_open and not debt(code, "")


def _code_above(context: FilterContext) -> str:
    """The lines above the cursor's, blank ones at the end excepted, without strings and comments."""
    above, _ = near(context.prefix, "", _LINES_ABOVE, 1)
    return parser.code_only(context.language, above).rstrip()


# --- the unit


def indentation(candidate: Candidate, context: FilterContext) -> Candidate | Reason:
    """Indent in the unit of the block at the cursor.

    Tabs become spaces, or spaces tabs; uneven indentation stays uneven.
    """
    unit = unit_of(context)
    if not unit:
        return candidate
    first, *more = candidate.text.split("\n")
    lines = more if context.left.strip() else [first, *more]  # after text the first line has no indentation
    if unit != "\t":
        lines = [_to_spaces(line, unit) for line in lines]
    elif width := _space_unit([line for line in lines if line.startswith(" ") and line.strip()]):
        lines = [_to_tabs(line, width) for line in lines]
    return replace(candidate, text="\n".join([first, *lines] if context.left.strip() else lines))


def unit_of(context: FilterContext) -> str:
    """A tab, or spaces; empty where nothing says which, and the text keeps its own.

    The block at the cursor decides: the blanks of its line, of the next one where that is deeper, or on an
    empty line of the one above. Then the file, and then the habit of its language.
    """
    blanks = _blanks(context.left) or _blanks(_neighbour(context))
    if "\t" in blanks:
        return "\t"
    if blanks:
        return context.indent_unit if context.indent_unit.strip("\t") else _spaces(blanks)
    return context.indent_unit or INDENTATION.get(context.language or "", "")


def _neighbour(context: FilterContext) -> str:
    """The line that shares its block with a cursor whose own line is not indented.

    It may be indented or not.
    """
    below = context.below[0] if context.below else ""
    above = context.above[-1] if context.above and not context.left else ""
    return below if _blanks(below) else above


def _spaces(blanks: str) -> str:
    return next(unit for unit in ("    ", "  ", blanks) if len(blanks) % len(unit) == 0)


def _blanks(line: str) -> str:
    found = _BLANKS.match(line)
    return found[0] if found else ""


def _space_unit(lines: list[str]) -> int:
    """4 or 2, the widest unit that all indentation is made of; 0 if there is none."""
    width = math.gcd(*(len(line) - len(line.lstrip(" ")) for line in lines))
    return next((unit for unit in (4, 2) if width and width % unit == 0), 0)


def _to_tabs(line: str, width: int) -> str:
    body = line.lstrip(" ")
    return "\t" * ((len(line) - len(body)) // width) + body


def _to_spaces(line: str, unit: str) -> str:
    blanks = _blanks(line)
    return blanks.expandtabs(len(unit)) + line[len(blanks) :]
