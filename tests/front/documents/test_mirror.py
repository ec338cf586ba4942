"""The mirror equals the editor: every edit in every encoding against an independent model made of code units."""

import os
import re

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from fimserver.front.documents.mirror import (
    MAX_LINE_CHARS,
    Document,
    Edit,
    Position,
    column_of,
    split_lines,
    units_of,
)

ENCODINGS = ("utf-8", "utf-16", "utf-32")
CODECS = {"utf-8": ("utf-8", 1), "utf-16": ("utf-16-le", 2), "utf-32": ("utf-32-le", 4)}
# What other mirrors stumble over: form feed, VT, FS, NEL, U+2028, both halves of line ends, BOM, NUL, astral characters.
ALPHABET = "ab \t\n\r\x0b\x0c\x1c\x85\u2028\ufeff\0é√😀🎉"
TEXT = st.text(ALPHABET, max_size=30) | st.text(max_size=5).filter(
    lambda t: not re.search("[\ud800-\udfff]", t)
)
EDITS = int(os.environ.get("MIRROR_EDITS", "5000"))


class Model:
    """Independent model of a document: one array of code units, as in the specification."""

    def __init__(self, text, encoding):
        self.codec, self.size = CODECS[encoding]
        self.data = text.encode(self.codec)

    @property
    def text(self):
        return self.data.decode(self.codec)

    def offset(self, line, units):
        """Byte offset of a position; beyond the end of a line or of the document it is clamped."""
        starts = [0, *(match.end() for match in re.finditer(r"\r\n|\n|\r", self.text))]
        if line >= len(starts):
            return len(self.data)
        start = starts[line]
        end = starts[line + 1] if line + 1 < len(starts) else len(self.text)
        body = self.text[start:end].rstrip("\r\n")
        head = len(self.text[:start].encode(self.codec))
        wanted = body.encode(self.codec)[: units * self.size]
        whole = wanted.decode(self.codec, "ignore")  # a cursor inside a character is at its start
        return head + len(whole.encode(self.codec))

    def edit(self, start, end, text):
        a, b = self.offset(*start), self.offset(*end)
        if a <= b:
            self.data = self.data[:a] + text.encode(self.codec) + self.data[b:]
        return a <= b


POSITION = st.tuples(st.integers(0, 12), st.integers(0, 20))


class Mirror(RuleBasedStateMachine):
    """Random edits, single and batched, full replacements, reopening."""

    @initialize(text=TEXT, encoding=st.sampled_from(ENCODINGS))
    def open(self, text, encoding):
        self.encoding = encoding
        self.document, self.model, self.version = Document("u", "python", 1, text), Model(text, encoding), 1

    @rule(edits=st.lists(st.tuples(POSITION, POSITION, TEXT), min_size=1, max_size=3))
    def change(self, edits):
        edits = [(min(a, b), max(a, b), text) for a, b, text in edits]
        self.version += 1
        self.document.change(self.version, [Edit(a, b, text) for a, b, text in edits], self.encoding)
        for edit in edits:
            self.model.edit(*edit)

    @rule(text=TEXT)
    def replace_all(self, text):
        self.version += 1
        self.document.change(self.version, [Edit(None, None, text)], self.encoding)
        self.model = Model(text, self.encoding)

    @invariant()
    def equal(self):
        if hasattr(self, "document"):
            assert self.document.text == self.model.text
            assert self.document.lines == split_lines(self.model.text)
            assert self.document.chars == len(self.model.text)
            assert not self.document.dirty


def test_the_mirror_equals_the_editor_after_any_edits():
    steps = 50
    options = settings(
        max_examples=max(1, EDITS // steps),
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Mirror, settings=options)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("text", ["", "abc", "aé√😀b", "\ufeffx", "😀😀"])
def test_columns_and_units_are_inverse(encoding, text):
    for column in range(len(text) + 1):
        assert column_of(text, units_of(text[:column], encoding), encoding) == column


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", [""]),
        ("a", ["a"]),
        ("a\n", ["a\n", ""]),
        ("a\r\nb\rc\nd", ["a\r\n", "b\r", "c\n", "d"]),
        ("a\x0cb\x85c\u2028d\n", ["a\x0cb\x85c\u2028d\n", ""]),
        ("\r\r\n\n", ["\r", "\r\n", "\n", ""]),
    ],
)
def test_only_three_things_end_a_line(text, lines):
    assert split_lines(text) == lines


@pytest.mark.parametrize(
    ("version", "edit"),
    [
        pytest.param(0, Edit((0, 0), (0, 0), "x"), id="older version"),
        pytest.param(2, Edit((0, 2), (0, 1), "x"), id="end before start"),
    ],
)
def test_what_makes_no_sense_makes_the_document_dirty_until_its_whole_text_comes(version, edit):
    document = Document("u", "python", 1, "abc")
    document.change(version, [edit], "utf-16")
    assert document.dirty
    document.change(3, [Edit(None, None, "new")], "utf-16")
    assert not document.dirty
    assert document.text == "new"


def test_a_snapshot_keeps_the_text_of_its_moment():
    document = Document("u", "python", 1, "a = 1\nb = 2\n")
    snapshot = document.snapshot(Position(1, 2))
    document.change(2, [Edit((0, 0), (0, 5), "changed")], "utf-16")
    assert snapshot.prefix() == "a = 1\nb "
    assert snapshot.suffix() == "= 2\n"
    assert (snapshot.line_before, snapshot.line_after, snapshot.version) == ("b ", "= 2", 1)


def test_prefix_and_suffix_are_bounded():
    snapshot = Document("u", "python", 1, "x" * 50 + "\n" + "y" * 50).snapshot(Position(1, 10))
    assert snapshot.prefix(20) == "x" * 9 + "\n" + "y" * 10
    assert snapshot.suffix(20) == "y" * 20


def test_size_is_watched_through_edits():
    document = Document("u", "python", 1, "a\nb\n")
    document.change(2, [Edit((0, 0), (0, 0), "x" * (MAX_LINE_CHARS + 1))], "utf-16")
    assert document.too_large
    document.change(3, [Edit((0, 0), (0, MAX_LINE_CHARS + 1), "")], "utf-16")
    assert not document.too_large
