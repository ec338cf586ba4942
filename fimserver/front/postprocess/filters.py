"""Filters for characters, ends and limits of a text.

A filter takes a candidate and the text around the cursor, and returns the candidate, a changed one, or the
reason to show nothing.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace
from functools import partial

from fimserver.front.postprocess.candidate import CUT_SHORT, Candidate, FilterContext
from fimserver.front.postprocess.repetition import suffix_overlap
from fimserver.front.syntax import parser
from fimserver.front.syntax.brackets import QUOTES, debt, partners
from fimserver.front.syntax.languages import CLOSING_WORDS, CONTINUING_WORDS
from fimserver.languages import COMMENT_MARKS
from fimserver.reasons import Reason
from fimserver.stopping.around import Around, columns
from fimserver.stopping.rules import Endings
from fimserver.stopping.scan import CLOSES, scan

_CLOSING_REST = re.compile(r"[\s)\]}\"'`;,:>]*$")
# Emoji and letters of some scripts are joined by a hidden character; within names of code it would be a trap.
_JOINED = re.compile(r"(?<=[^\x00-\x7f])[\u200c\u200d](?=[^\x00-\x7f])")
# Invisible characters and those that change the direction of text (arXiv 2111.00169), line separators, half
# characters.
# As the tokenizers of coders write them. No language has them, but a file about language models may.
_SPECIAL = re.compile(
    r"<\|(?:end_?of_?text|fim_\w{1,20}|im_(?:start|end)|file_sep(?:arator)?|repo_name"
    r"|eot_id|begin_of_text|mask|pad|expand|delete"
    r"|code_(?:prefix|middle|suffix))\|>|<\uff5c[^\uff5c\s]{1,30}\uff5c>"
    r"|<fim[_-](?:prefix|middle|suffix|pad)>|<(?:EOT|file_sep|repo_name)>"
)
_SCOPE_RULE = frozenset({"scope"})
_HIDDEN = frozenset({"Cf", "Zl", "Zp", "Cs"})


# --- characters


def special_tokens(candidate: Candidate, context: FilterContext) -> Candidate | Reason:
    """Cut where a special token begins.

    One of ``special``, or a well-known one that the file itself does not have.
    """
    found = [at for token in context.special if token and (at := candidate.text.find(token)) >= 0]
    known = (
        match
        for match in _SPECIAL.finditer(candidate.text)
        if match[0] not in context.prefix + context.suffix
    )
    found += [match.start() for match in known]
    return replace(candidate, text=candidate.text[: min(found)]) if found else candidate


def broken_characters(candidate: Candidate, _: FilterContext) -> Candidate | Reason:
    """Cut half a character at the end; within the text it means that bytes were lost."""
    text = candidate.text.rstrip("\ufffd")
    return Reason.CONTROL if "\ufffd" in text else replace(candidate, text=text)


def line_ends(candidate: Candidate, _: FilterContext) -> Candidate | Reason:
    return replace(candidate, text=candidate.text.replace("\r", ""))


def control(candidate: Candidate, context: FilterContext) -> Candidate | Reason:
    """Drop text with control characters, and with hidden ones that the file does not use."""
    text = _JOINED.sub("", candidate.text)
    for char in set(text) - {"\n", "\t"}:
        kind = unicodedata.category(char)
        if kind == "Cc" or (
            kind in _HIDDEN and (kind == "Cs" or char not in context.prefix + context.suffix)
        ):
            return Reason.CONTROL
    return candidate


# --- edges


def unfinished(candidate: Candidate, context: FilterContext) -> Candidate | Reason:
    """Keep the complete part of a text that was cut short.

    Of several lines these are the whole ones. A single line stays if it ends neither in a word, which may be
    half of one, nor in a string that it has begun.
    """
    if context.reason not in CUT_SHORT or not candidate.text.strip():
        return candidate
    whole, newline, _ = candidate.text.rpartition("\n")
    if newline and whole.strip():
        return replace(candidate, text=whole)
    nothing = Reason.UNFINISHED if context.reason is Reason.DEADLINE else Reason.CUT_OFF
    text = candidate.text.rstrip()
    if re.search(r"\w$", text):
        return nothing
    inside = partial(parser.place, context.language, suffix=context.suffix)
    begun = inside(prefix=context.prefix + text) == "string" != inside(prefix=context.prefix)
    return nothing if begun else candidate


def trailing(candidate: Candidate, context: FilterContext) -> Candidate | Reason:
    """Remove blanks at the end, unless text follows there."""
    if _CLOSING_REST.match(context.right):
        return replace(candidate, text=candidate.text.rstrip())
    return replace(candidate, text=candidate.text.rstrip(" \t")) if context.right[0] in " \t" else candidate


def comment(candidate: Candidate, context: FilterContext) -> Candidate | Reason:
    """Cut a comment at the end that would hide the rest of the line, or that says what no code below does."""
    language = context.language or ""
    mark = COMMENT_MARKS.get(language, "")
    if not mark or mark not in candidate.text:
        return candidate
    around = Around(context.prefix, context.suffix, language)
    if around.state.inside == "//":
        return candidate
    code = candidate.text[: _comment_at(candidate.text, around)]
    if code == candidate.text or not code.strip():
        return candidate
    own_line = code.rsplit("\n", 1)[-1]
    leads_on = bool(own_line.strip()) or columns(around.next_line) >= columns(own_line) > 0
    hides = bool(around.right) and not around.right.startswith(mark)
    return replace(candidate, text=code.rstrip()) if hides or not leads_on else candidate


def _comment_at(text: str, around: Around) -> int:
    """Return where the comment begins that ``text`` ends in; its length if it ends in code or a string."""
    at = len(text)
    state = around.state
    for mark in scan(text, around.language, state):
        at = mark.offset if mark.state.inside == "//" != state.inside else at
        state = mark.state
    return at if state.inside == "//" else len(text)


# --- limits


def one_line(candidate: Candidate, context: FilterContext) -> Candidate | Reason:
    """Keep the first line that is not blank, where one line is wanted."""
    if not context.single_line:
        return candidate
    newline = candidate.text.find("\n", len(candidate.text) - len(candidate.text.lstrip()))
    return candidate if newline < 0 else replace(candidate, text=candidate.text[:newline].rstrip())


def scope(candidate: Candidate, context: FilterContext) -> Candidate | Reason:
    """Cut at the first line outside of the block that the cursor is in.

    Closers that the suffix lacks stay.
    """
    lines = candidate.text.split("\n")
    limit = _limit(context, lines[0])
    deeper = False
    closed = False
    for i, line in enumerate(lines[1:], 1):
        if not line.strip():
            continue
        width = columns(line)
        if width < limit or closed or (deeper and width == limit and context.left.strip()):
            suffix = context.suffix[candidate.replace :]
            if not _stays(line, lines[:i], replace(context, suffix=suffix), outside=width < limit or closed):
                if _may_run_on(candidate.text, context.prefix, suffix, context.language or ""):
                    return candidate
                return suffix_overlap(Candidate("\n".join(lines[:i]).rstrip()), context)
            closed = closed or width < limit
        deeper = deeper or width > limit
    return candidate


def _may_run_on(text: str, prefix: str, suffix: str, language: str) -> bool:
    """Whether the host's rule for the end of a middle (strings, handlers, brackets) allows the text."""
    return Endings(Around(prefix, suffix, language), "none", _SCOPE_RULE).end(text + "\n") is None


def _limit(context: FilterContext, first: str) -> int:
    """Columns of the block. On a fresh line that the editor did not indent, the first line's own."""
    return columns(context.left if context.left.strip() else context.left or first)


def _stays(line: str, before: list[str], context: FilterContext, *, outside: bool) -> bool:
    """Whether a line that ends the block belongs to it.

    It closes or goes on with what the text or the prefix opened.
    """
    words = re.findall(r"\w+", line)
    if line.strip()[0] in CLOSES:
        head = "\n".join([*before, line])
        opened = partners(head)[0][len(head) - len(line.lstrip())]
        return opened >= 0 or _open_before(context, "\n".join(before)) > 0
    if not words or outside:
        return bool(words) and _is_closing_word(words[0], context) and not _closes_below(words[0], context)
    return words[0] in CONTINUING_WORDS or _is_closing_word(words[0], context)


def _open_before(context: FilterContext, text: str) -> int:
    """Brackets before the end of ``text`` that the suffix does not close."""
    return debt(*parser.code_around(context.language, context.prefix, text, context.suffix))


def _is_closing_word(word: str, context: FilterContext) -> bool:
    return word in CLOSING_WORDS.get(context.language or "", ())


def _closes_below(word: str, context: FilterContext) -> bool:
    return bool(context.below) and context.below[0].split()[0] == word


# --- what is left


def no_op(candidate: Candidate, context: FilterContext) -> Candidate | Reason:
    text = candidate.text.strip()
    if not text:
        return Reason.BLANK
    if set(text) <= set(QUOTES) and context.left.endswith(text) and not context.right.strip():
        return Reason.EMPTY  # the end of a string with nothing in it
    return Reason.NO_OP if candidate.text == context.suffix[: candidate.replace] else candidate


def rejected(candidate: Candidate, context: FilterContext) -> Candidate | Reason:
    return Reason.REJECTED if candidate.text in context.rejected else candidate
