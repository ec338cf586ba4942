"""Snippets of recent edits, with their current text."""

import time

import pytest

from fimserver.front.documents.mirror import Document, Edit
from fimserver.front.documents.recent_edits import (
    AROUND_LINES,
    MAX_REGIONS,
    MAX_SNIPPETS,
    REGION_LINES,
    RecentEdits,
)

TEXT = "".join(f"line {i}\n" for i in range(100))


def document(name, text=TEXT):
    return Document(f"file:///{name}", "python", 1, text)


def change(edits, doc, line, text, end=None):
    doc.change(doc.version + 1, [Edit((line, 0), end or (line, 0), text)], "utf-16")
    edits.observe(doc, line)


def shown(edits, exclude=("", None), hidden=()):
    return edits.snippets(*exclude, lambda uri: None if uri in hidden else uri.rpartition("/")[2])


def test_an_edit_is_shown_as_it_reads_now_with_a_few_lines_around():
    edits, doc = RecentEdits(), document("a.py")
    change(edits, doc, 50, "new ")
    (snippet,) = shown(edits)
    assert snippet.path == "a.py"
    assert snippet.text == "line 48\nline 49\nnew line 50\nline 51\nline 52\n"
    change(edits, doc, 50, "brand ")
    assert "brand new line 50\n" in shown(edits)[0].text


def test_close_edits_are_one_region_and_distant_ones_two():
    edits, doc = RecentEdits(), document("a.py")
    for line in (10, 12, 60):
        change(edits, doc, line, "x")
    assert [snippet.text.splitlines()[AROUND_LINES] for snippet in shown(edits)] == ["xline 10", "xline 60"]


def test_the_newest_edit_is_the_last():
    edits, first, second = RecentEdits(), document("a.py"), document("b.py")
    change(edits, first, 10, "x")
    change(edits, second, 10, "x")
    assert [snippet.path for snippet in shown(edits)] == ["a.py", "b.py"]
    change(edits, first, 11, "y")
    assert [snippet.path for snippet in shown(edits)] == ["b.py", "a.py"]


@pytest.mark.parametrize(("line", "text", "end"), [(5, "a\nb\nc\n", None), (5, "", (8, 0)), (5, "x", None)])
def test_a_region_moves_with_lines_that_come_or_go_above(line, text, end):
    edits, doc = RecentEdits(), document("a.py")
    change(edits, doc, 50, "new ")
    change(edits, doc, line, text, end)
    assert any("new line 50\n" in snippet.text for snippet in shown(edits))


def test_a_large_paste_is_shown_in_part():
    edits, doc = RecentEdits(), document("a.py")
    change(edits, doc, 5, "p\n" * 1000)
    assert shown(edits)[0].text.count("\n") <= REGION_LINES + 2 * AROUND_LINES


def test_lines_that_went_are_not_asked_for():
    edits, doc = RecentEdits(), document("a.py")
    change(edits, doc, 90, "new ")
    change(edits, doc, 10, "", (100, 0))
    assert "line 9\n" in shown(edits)[-1].text


@pytest.mark.parametrize(
    ("exclude", "count"),
    [
        (("file:///a.py", None), 0),
        (("file:///a.py", range(40, 60)), 0),
        (("file:///a.py", range(40)), 1),
        (("file:///b.py", None), 1),
    ],
)
def test_what_the_model_sees_anyway_is_left_out(exclude, count):
    edits, doc = RecentEdits(), document("a.py")
    change(edits, doc, 50, "new ")
    assert len(shown(edits, exclude)) == count


def test_hidden_dirty_and_closed_documents_feed_nothing():
    edits, doc = RecentEdits(), document("a.py")
    change(edits, doc, 50, "new ")
    assert shown(edits, hidden={"file:///a.py"}) == ()
    doc.dirty = True
    assert shown(edits) == ()
    doc.dirty = False
    edits.forget(doc.uri)
    assert shown(edits) == ()


def test_the_log_is_bounded():
    edits = RecentEdits()
    documents = [document(f"{i}.py") for i in range(3 * MAX_REGIONS)]
    for doc in documents:
        change(edits, doc, 10, "x")
    assert [snippet.path for snippet in shown(edits)] == [f"{i}.py" for i in range(3 * MAX_REGIONS)][
        -MAX_SNIPPETS:
    ]
    assert len(edits._regions) == MAX_REGIONS


def test_a_key_costs_the_same_in_a_long_file():
    edits, doc = RecentEdits(), document("a.py", "x = 1\n" * 50_000)
    start = time.perf_counter()
    for line in range(0, 50_000, 50):
        edits.observe(doc, line)
    assert time.perf_counter() - start < 0.5  # 1000 keys
