"""The quality benchmark: its spans, its rows, its table."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bench.quality import KINDS, Row, Span, cut, fill, read_rows, table
from fimserver.cards import PACKAGE
from fimserver.engine.engines import ModelPool
from fimserver.settings import read_settings

FILES = {
    "code": {"diffusion.py": (PACKAGE / "engine" / "diffusion.py").read_text("utf-8")},
    "more": {"canvas.py": (PACKAGE / "engine" / "denoising" / "canvas.py").read_text("utf-8")},
}


def test_spans_are_so_many_of_each_kind_none_twice_and_the_same_again():
    spans = list(cut({"line": 6, "body": 3}, FILES, 5))
    assert [span.kind for span in spans] == ["line"] * 6 + ["body"] * 3
    assert len({span.id for span in spans}) == 9
    assert spans == list(cut({"line": 6, "body": 3}, FILES, 5))
    assert spans != list(cut({"line": 6, "body": 3}, FILES, 6))
    for span in spans:
        package, file = span.path.split("/")
        assert span.prefix + span.middle + span.suffix in FILES[package][file]


def test_a_file_with_too_few_places_gives_as_many_as_it_has():
    text = "def f():\n    return 1\n"
    assert len(list(cut({"line": 9}, {"a": {"a.py": text}}, 0))) < 9


def test_nano_fills_lines_with_one_line_and_blocks_with_more(nano: ModelPool):
    spans = list(cut({"line": 2, "block": 1}, FILES, 1))
    rows = list(fill(nano, read_settings(model="ar", prompt_tokens=256), spans))
    assert [row.id for row in rows] == [span.id for span in spans]
    assert all("\n" not in row.completion.strip() for row in rows[:2])
    assert all(0 <= row.similarity <= 1 and row.tokens >= 0 and row.reason for row in rows)


def row(number: int, kind: str, *, right: bool) -> Row:
    return Row(str(number), kind, right, right, float(right), 4, 1.0, "line", "x")


def test_the_table_pairs_spans_that_all_files_have():
    first = [row(n, "line", right=n < 2) for n in range(8)]
    second = [replace(each, first_line=True) for each in first[:4]]
    lines = table({"one": first, "two": second}).splitlines()
    assert lines[2].startswith("| one line (4) | one | 50.0% [0.0, 100.0] | 50.0% [0.0, 100.0] |  |")
    assert lines[3].startswith("| one line (4) | two | 50.0% [0.0, 100.0] | 100.0% [100.0, 100.0] | +50.0 [")
    assert not any("block" in line for line in lines)


@pytest.mark.parametrize("cut_off", ["", '{"id": "half'])
def test_a_run_goes_on_after_the_last_whole_row(tmp_path: Path, cut_off: str):
    path = tmp_path / "rows.jsonl"
    rows = [row(n, "line", right=True) for n in range(3)]
    path.write_text("".join(json.dumps(asdict(each)) + "\n" for each in rows) + cut_off, "utf-8")
    assert read_rows(path) == rows
    assert read_rows(tmp_path / "none.jsonl") == []


def test_a_span_keeps_its_form_in_json():
    span = next(cut({"line": 1}, FILES, 0))
    assert Span(**json.loads(json.dumps(asdict(span)))) == span
    assert span.kind in KINDS
