"""Cursors in real files: all line ends, all edges, and files that cannot be completed."""

import json

import pytest

from fimserver.commands.cursor import line_end, read_place
from fimserver.errors import InputError
from fimserver.spans import read_spans


@pytest.mark.parametrize(
    ("text", "place", "prefix", "suffix"),
    [
        ("", "1:1", "", ""),
        ("", "1", "", ""),
        ("ab", "1:1", "", "ab"),
        ("ab", "1:3", "ab", ""),
        ("ab", "1", "ab", ""),
        ("ab\n", "2:1", "ab\n", ""),
        ("ab\ncd\n", "1:3", "ab", "\ncd\n"),
        ("ab\r\ncd\r\n", "1:3", "ab", "\r\ncd\r\n"),
        ("ab\r\ncd", "2:2", "ab\r\nc", "d"),
        ("ab\rcd", "2:1", "ab\r", "cd"),
        ("\tx = 1", "1:2", "\t", "x = 1"),
        ("a = '😀'", "1:7", "a = '😀", "'"),
        ("a\x0cb\u2028c\n", "1:6", "a\x0cb\u2028c", "\n"),
        ("\ufeffa", "1:1", "", "a"),  # a byte order mark is no column
        ("\ufeffab", "1:2", "a", "b"),
        ("\ufeffab", "1", "ab", ""),
        ("\ufeffa\r\nb", "2:2", "a\r\nb", ""),
        ("a\ufeffb", "1:3", "a\ufeff", "b"),
    ],
)
def test_a_place_cuts_the_file_there(text, place, prefix, suffix, tmp_path):
    path = tmp_path / "file:name.py"
    path.write_bytes(text.encode())
    found = read_place(f"{path}:{place}")
    assert (found.prefix, found.suffix) == (prefix, suffix)


@pytest.mark.parametrize(
    ("place", "complaint"),
    [
        ("1:4", "columns 1 to 3; column 4 is outside"),
        ("3:1", "lines 1 to 2; line 3 is outside"),
        ("0:1", "line 0 is outside"),
        ("1:0", "column 0 is outside"),
    ],
)
def test_a_place_outside_the_file_says_what_there_is(place, complaint, tmp_path):
    path = tmp_path / "a.py"
    path.write_text("ab\n")
    with pytest.raises(InputError, match=complaint):
        read_place(f"{path}:{place}")


@pytest.mark.parametrize(
    ("data", "complaint"),
    [(b"\x7fELF\0\0", "binary file"), (b"caf\xe9", "not UTF-8"), (b"\xff\xfea\0", "not UTF-8")],
)
def test_files_that_are_not_text_are_refused(data, complaint, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(data)
    with pytest.raises(InputError, match=complaint):
        read_place(f"{path}:1:1")


@pytest.mark.parametrize("spec", ["a.py", "a.py:x", "12", ""])
def test_what_is_not_a_place_is_said_so(spec):
    with pytest.raises(InputError, match="FILE:LINE:COL"):
        read_place(spec)


def test_a_missing_file_and_a_folder_are_clear_errors(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_place(f"{tmp_path}/none.py:1:1")
    with pytest.raises(InputError, match="directory"):
        read_place(f"{tmp_path}:1:1")


@pytest.mark.parametrize(
    ("text", "end"), [("a\nb\n", "\n"), ("a\r\nb\r\n", "\r\n"), ("", "\n"), ("a\r\nb\nc\n", "\n")]
)
def test_the_line_end_is_that_of_the_file(text, end):
    assert line_end(text) == end


def test_bad_rows_of_a_spans_file_say_so_and_do_not_end_the_rest(tmp_path):
    path = tmp_path / "spans.jsonl"
    rows = [
        json.dumps({"id": 1, "prefix": "a", "suffix": "b", "extra": 1}),
        "{",
        "",
        "[]",
        json.dumps({"id": 2, "prefix": "a"}),
        json.dumps({"prefix": "a", "suffix": ""}),
        json.dumps({"id": 3, "prefix": "", "suffix": ""}),
    ]
    path.write_text("\n".join(rows))
    spans = list(read_spans(path, None))
    assert [(s.span_id, bool(s.problem)) for s in spans] == [
        (1, False), (None, True), (None, True), (2, True), (None, True), (3, False),
    ]  # fmt: skip
    assert "spans.jsonl:5: 'suffix' is missing" in spans[3].problem
    assert len(list(read_spans(path, 2))) == 2
