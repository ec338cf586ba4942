"""Syntax gate: drops a text that breaks the file, or cuts it to its first lines that do not."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import takewhile

from fimserver.front.postprocess.candidate import Candidate, FilterContext
from fimserver.front.postprocess.repetition import suffix_overlap
from fimserver.front.syntax import parser
from fimserver.front.syntax.brackets import closers_for
from fimserver.front.syntax.features import opens_block
from fimserver.front.syntax.languages import CLOSING_WORDS
from fimserver.front.syntax.magics import is_other_language, without_magics
from fimserver.front.syntax.python_compiler import Crop, crop_of
from fimserver.reasons import Reason
from fimserver.types import unix_lines

_TRIES = 12  # shorter texts that are looked at
_DECORATOR = re.compile(r"\s*@[^\n]*\n")
# What may follow a header that has no body yet, for Python to compile it.
_BODIES = ("pass", "pass\n{}finally: pass", "case _: pass")


def syntax_gate(candidate: Candidate, context: FilterContext) -> Candidate | Reason:
    """Drop what breaks the file, or cut it to its first lines that do not."""
    if not candidate.text.strip() or not _breaks(candidate, context):
        return candidate
    lines = candidate.text.split("\n")
    most = min(len(lines) - 1, _error_line(candidate, context))
    for count in range(most, max(0, most - _TRIES), -1):
        text = "\n".join(lines[:count]).rstrip()
        shorter = suffix_overlap(Candidate(text), context)
        if text.strip() and isinstance(shorter, Candidate) and not _breaks(shorter, context):
            return shorter
    return Reason.SYNTAX


def parse_ahead(context: FilterContext) -> None:
    """Parse what is around the cursor before there is a text; what is found is kept for the gate."""
    context = replace(context, prefix=unix_lines(context.prefix), suffix=unix_lines(context.suffix))
    if context.language is not None and (plain := _plain(Candidate(""), context)) is not None:
        parser.read_ahead(context.language, plain[1].prefix, plain[1].suffix)
        if context.language == "python":
            _crop_around(plain[1])


def _breaks(candidate: Candidate, context: FilterContext) -> bool:
    """Where one line was asked for, what it opens need not be closed in it.

    Then it is judged with the closers.
    """
    endings = [""]
    if context.single_line or context.reason in {Reason.LINE, Reason.STATEMENT}:
        closers = closers_for(parser.code_only(context.language, candidate.text))
        words = CLOSING_WORDS.get(context.language or "", ())
        opens = opens_block(context.language, candidate.text)
        endings += [closers] if closers else []
        endings += ["\n" + word + closers for word in words if opens]
    return all(_breaks_file(replace(candidate, text=candidate.text + ending), context) for ending in endings)


def _breaks_file(candidate: Candidate, context: FilterContext) -> bool:
    plain = _plain(candidate, context)
    if plain is None:
        return False
    breaks = _breaks_python(*plain)
    return _breaks_tree(*plain) if breaks is None else breaks


def _plain(candidate: Candidate, context: FilterContext) -> tuple[Candidate, FilterContext] | None:
    """The text and what is around it in plain Python.

    ``None`` for a cell of a notebook in another language.
    """
    if not context.is_cell or context.language != "python":
        return candidate, context
    if is_other_language(context.prefix + candidate.text):
        return None
    prefix, text, suffix = without_magics(context.prefix, candidate.text, context.suffix)
    return replace(candidate, text=text), replace(context, prefix=prefix, suffix=suffix)


def _breaks_tree(candidate: Candidate, context: FilterContext) -> bool:
    return parser.breaks_syntax(
        context.language, context.prefix, candidate.text, context.suffix, candidate.replace
    )


def _breaks_python(candidate: Candidate, context: FilterContext) -> bool | None:
    """Whether Python does not compile the text; ``None`` where it compiles nothing there.

    A header alone may be shown.
    """
    crop = _crop(candidate, context)
    if crop is None:
        return None
    if crop.error_line(candidate.text) is None:
        return False
    header = _DECORATOR.sub("", candidate.text.strip("\n"))
    is_header = "\n" not in header and opens_block("python", parser.code_only("python", header))
    if not is_header or context.right[candidate.replace :].strip():
        return True
    return all(crop.error_line(text) is not None for text in _with_bodies(candidate.text, context))


def _with_bodies(text: str, context: FilterContext) -> list[str]:
    """A text that ends in a header, with what may be below it."""
    line = (context.left + text).rsplit("\n", 1)[-1]
    blanks = line[: len(line) - len(line.lstrip(" \t"))]
    deeper = blanks + ("\t" if blanks.endswith("\t") else "    ")
    return [f"{text}\n{deeper}{body.format(blanks)}" for body in _BODIES]


def _error_line(candidate: Candidate, context: FilterContext) -> int:
    """The first line that Python does not compile: the lines before it may be good.

    A large number if it says nothing.
    """
    plain = _plain(candidate, context)
    crop = _crop(*plain) if plain else None
    line = crop.error_line(plain[0].text) if plain and crop else None
    return len(candidate.text) if line is None else max(1, line)


def _crop_around(context: FilterContext) -> Crop | None:
    is_blank = not context.left.strip() and not context.right.strip()
    return crop_of(
        context.prefix, context.suffix, ("pass", "") if is_blank else ("", "x"), is_cell=context.is_cell
    )


def _crop(candidate: Candidate, context: FilterContext) -> Crop | None:
    """What compiles around the cursor.

    With nothing there, with a statement, a name, or the first line of the text.
    """
    if context.language != "python":
        return None
    known = _crop_around(context)
    if known is not None:
        return known.without(candidate.replace)
    lines = candidate.text.split("\n")
    first = 1 + sum(1 for _ in takewhile(lambda line: not line.strip(), lines))
    if first >= len(lines):
        return None
    head = "\n".join(lines[:first])
    is_header = opens_block("python", parser.code_only("python", head))
    fillers = (head, *(_with_bodies(head, context) if is_header else ()))
    return crop_of(context.prefix, context.suffix[candidate.replace :], fillers, is_cell=context.is_cell)
