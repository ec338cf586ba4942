"""Knows the filters for what may not be shown, and for where a text must end. Knows nothing of repetition.

A filter gets a draft and what is around it, and gives back the draft, another one, or the reason to show nothing.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace
from functools import partial

from fimserver.around import Around
from fimserver.endings import Endings
from fimserver.front.postprocess.candidate import Candidate, FilterContext
from fimserver.front.postprocess.repetition import suffix_overlap
from fimserver.front.syntax import parser
from fimserver.front.syntax.brackets import CLOSERS, debt, partners
from fimserver.front.syntax.crop import WINDOW_CHARS
from fimserver.front.syntax.features import columns
from fimserver.front.syntax.languages import CLOSING_WORDS, CONTINUING_WORDS
from fimserver.reasons import Reason

_CUT_SHORT = frozenset({Reason.DEADLINE, Reason.LENGTH})
_CLOSING_REST = re.compile(r"[\s)\]}\"'`;,:>]*$")
# Emoji and letters of some scripts are joined by a hidden character; within names of code it would be a trap.
_JOINED = re.compile(r"(?<=[^\x00-\x7f])[\u200c\u200d](?=[^\x00-\x7f])")
# Invisible characters and those that change the direction of text (arXiv 2111.00169), line separators, half characters.
# As the tokenizers of coders write them. No language has them, but a file about language models may.
_SPECIAL = re.compile(
    r"<\|(?:end_?of_?text|fim_\w{1,20}|im_(?:start|end)|file_sep(?:arator)?|repo_name|eot_id|begin_of_text|mask|pad|expand|delete"
    r"|code_(?:prefix|middle|suffix))\|>|<\uff5c[^\uff5c\s]{1,30}\uff5c>|<fim[_-](?:prefix|middle|suffix|pad)>|<(?:EOT|file_sep|repo_name)>"
)
_SCOPE_RULE = frozenset({"scope"})
_HIDDEN = frozenset({"Cf", "Zl", "Zp", "Cs"})


# --- characters


def special_tokens(draft: Candidate, around: FilterContext) -> Candidate | Reason:
    """Cut where a special token begins: one of ``special``, or a well-known one that the file itself does not have."""
    found = [at for token in around.special if token and (at := draft.text.find(token)) >= 0]
    known = (match for match in _SPECIAL.finditer(draft.text) if match[0] not in around.prefix + around.suffix)
    found += [match.start() for match in known]
    return replace(draft, text=draft.text[: min(found)]) if found else draft


def broken_characters(draft: Candidate, _: FilterContext) -> Candidate | Reason:
    """Cut half a character at the end; within the text it means that bytes were lost."""
    text = draft.text.rstrip("\ufffd")
    return Reason.CONTROL if "\ufffd" in text else replace(draft, text=text)


def line_ends(draft: Candidate, _: FilterContext) -> Candidate | Reason:
    return replace(draft, text=draft.text.replace("\r", ""))


def control(draft: Candidate, around: FilterContext) -> Candidate | Reason:
    """Drop text with control characters, and with hidden ones that the file does not use."""
    text = _JOINED.sub("", draft.text)
    for char in set(text) - {"\n", "\t"}:
        kind = unicodedata.category(char)
        if kind == "Cc" or (kind in _HIDDEN and (kind == "Cs" or char not in around.prefix + around.suffix)):
            return Reason.CONTROL
    return draft


# --- edges


def unfinished(draft: Candidate, around: FilterContext) -> Candidate | Reason:
    """What was cut short keeps what can stand on its own.

    Of several lines these are the whole ones. A single line stays if it ends neither in a word, which may be half of
    one, nor in a string that it has begun.
    """
    if around.reason not in _CUT_SHORT or not draft.text.strip():
        return draft
    whole, newline, _ = draft.text.rpartition("\n")
    if newline and whole.strip():
        return replace(draft, text=whole)
    nothing = Reason.UNFINISHED if around.reason is Reason.DEADLINE else Reason.CUT_OFF
    text = draft.text.rstrip()
    if re.search(r"\w$", text):
        return nothing
    inside = partial(parser.place, around.language, suffix=around.suffix)
    begun = inside(prefix=around.prefix + text) == "string" != inside(prefix=around.prefix)
    return nothing if begun else draft


def trailing(draft: Candidate, around: FilterContext) -> Candidate | Reason:
    """No blanks at the end, unless text follows there."""
    if _CLOSING_REST.match(around.right):
        return replace(draft, text=draft.text.rstrip())
    return replace(draft, text=draft.text.rstrip(" \t")) if around.right[0] in " \t" else draft


# --- limits


def one_line(draft: Candidate, around: FilterContext) -> Candidate | Reason:
    """The first line that is not blank, where one line is wanted."""
    if not around.single_line:
        return draft
    newline = draft.text.find("\n", len(draft.text) - len(draft.text.lstrip()))
    return draft if newline < 0 else replace(draft, text=draft.text[:newline].rstrip())


def scope(draft: Candidate, around: FilterContext) -> Candidate | Reason:
    """Cut at the first line outside of the block that the cursor is in; closers that the suffix lacks stay."""
    lines = draft.text.split("\n")
    limit = _limit(around, lines[0])
    deeper, closed = False, False
    for i, line in enumerate(lines[1:], 1):
        if not line.strip():
            continue
        width = columns(line)
        if width < limit or closed or (deeper and width == limit and around.left.strip()):
            suffix = around.suffix[draft.replace :]
            if not _stays(line, lines[:i], replace(around, suffix=suffix), outside=width < limit or closed):
                if _may_run_on(draft.text, around.prefix, suffix, around.language or ""):
                    return draft
                return suffix_overlap(Candidate("\n".join(lines[:i]).rstrip()), around)
            closed = closed or width < limit
        deeper = deeper or width > limit
    return draft


def _may_run_on(text: str, prefix: str, suffix: str, language: str) -> bool:
    """Whether the rule that ends middles in the host lets all of it be written, which sees strings, handlers and brackets."""
    return Endings(Around(prefix, suffix, language), "none", _SCOPE_RULE).end(text + "\n") is None


def _limit(around: FilterContext, first: str) -> int:
    """Columns of the block. On a fresh line that the editor did not indent, the first line's own."""
    return columns(around.left if around.left.strip() else around.left or first)


def _stays(line: str, before: list[str], around: FilterContext, *, outside: bool) -> bool:
    """Whether a line that ends the block belongs to it: it closes or goes on with what the text or the prefix opened."""
    words = re.findall(r"\w+", line)
    if line.strip()[0] in CLOSERS:
        head = "\n".join([*before, line])
        opened = partners(head)[0][len(head) - len(line.lstrip())]
        return opened >= 0 or _open_before(around, "\n".join(before)) > 0
    if not words or outside:
        return bool(words) and _is_closing_word(words[0], around) and not _closes_below(words[0], around)
    return words[0] in CONTINUING_WORDS or _is_closing_word(words[0], around)


def _open_before(around: FilterContext, text: str) -> int:
    """Brackets before the end of ``text`` that the suffix does not close."""
    prefix, suffix = around.prefix[-WINDOW_CHARS:], around.suffix[:WINDOW_CHARS]
    code = parser.code_only(around.language, prefix + text + suffix)
    cursor = len(prefix) + len(text)
    return debt(code[:cursor], code[cursor:])


def _is_closing_word(word: str, around: FilterContext) -> bool:
    return word in CLOSING_WORDS.get(around.language or "", ())


def _closes_below(word: str, around: FilterContext) -> bool:
    return bool(around.below) and around.below[0].split()[0] == word


# --- what is left


def no_op(draft: Candidate, around: FilterContext) -> Candidate | Reason:
    if not draft.text.strip():
        return Reason.BLANK
    return Reason.NO_OP if draft.text == around.suffix[: draft.replace] else draft


def rejected(draft: Candidate, around: FilterContext) -> Candidate | Reason:
    return Reason.REJECTED if draft.text in around.rejected else draft
