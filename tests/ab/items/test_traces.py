"""Consistent and inconsistent traces."""

import json
import stat

import pytest

from bench.make_traces import MADE, make_trace
from bench.make_traces import main as make_traces
from fimserver.ab.items.traces import (
    Change,
    Close,
    Open,
    Patch,
    SuggestionRequested,
    Texts,
    Trace,
    read_trace,
    write_trace,
)
from fimserver.errors import InputError

HEADER = {"fimserver_trace": 1, "version": "0.1.0", "started": "2026-01-31T12:00:00+00:00"}
OPEN = {"t": 0, "e": "open", "doc": 1, "language": "python", "name": "a.py", "text": "def f():\r\n    é😀\n"}


def key(t_ms=100, doc=1, at=(1, 6), end=None, text="x"):
    return {"t": t_ms, "e": "change", "doc": doc, "edits": [[*at, *(end or at), text]]}


@pytest.fixture
def written(tmp_path):
    def write(*lines, end="\n"):
        path = tmp_path / "work.jsonl"
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + end
        path.write_text(text, "utf-8", newline="")
        return path

    return write


def test_what_a_trace_holds(written):
    ask = {"t": 140.5, "e": "ask", "doc": 1, "line": 1, "char": 7, "invoked": True}
    trace = read_trace(written(HEADER, OPEN, key(), ask, {"t": 200, "e": "close", "doc": 1}))
    opened, changed, asked, closed = trace.events
    assert (trace.name, trace.started, trace.made) == ("work", HEADER["started"], "")
    assert (opened.name, opened.language, opened.text) == ("a.py", "python", OPEN["text"])
    assert changed.edits == (Patch(1, 6, 1, 6, "x"),)
    assert (asked.t_ms, asked.line, asked.char, asked.invoked) == (140.5, 1, 7, True)
    assert isinstance(closed, Close)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (key(at=(3, 0)), "impossible positions: line 3 of document 1, which has 3 lines"),
        (key(at=(1, 7)), "impossible positions: character 7 of line 1 in document 1, which has 6"),
        (key(at=(0, 9)), "impossible positions: character 9 of line 0 in document 1, which has 8"),
        (key(at=(1, 0), end=(9, 0)), "impossible positions: line 9"),
        (key(at=(1, 3), end=(1, 1)), "impossible positions: (1, 1) is before (1, 3)"),
        (key(at=(-1, 0)), "greater than or equal to 0"),
        (key(at=("a", 0)), "valid integer"),
        (key(doc=2), "document 2 is not open"),
        ({"t": 100, "e": "ask", "doc": 1, "line": 1, "char": 8}, "impossible positions: character 8"),
        ({"t": 100, "e": "ask", "doc": 3, "line": 0, "char": 0}, "document 3 is not open"),
        ({"t": 100, "e": "close", "doc": 3}, "document 3 is not open"),
        ({"t": 100, "e": "jump", "doc": 1}, "'jump'"),
        ({"t": 100, "doc": 1}, "discriminator"),
        ({"t": 40, "e": "close", "doc": 1}, "time runs backwards: 40 ms after 50 ms"),
        ({"t": -1, "e": "close", "doc": 1}, "greater than or equal to 0"),
        ({"t": 100, "e": "change", "doc": 1, "edits": []}, "at least 1 item"),
        ({**OPEN, "t": 100}, "document 1 is open already"),
        ({**OPEN, "t": 100, "doc": 2, "name": "home/me/a.py"}, "pattern"),
        ({**OPEN, "t": 100, "doc": 2, "name": "..\\a.py"}, "pattern"),
        ('{"t": 100, "e": "cl', "EOF"),
        ("[1, 2]", "an object"),
    ],
)
def test_what_cannot_be_is_named_with_its_line(line, says, written):
    path = written(HEADER, OPEN, key(50, at=(0, 0), text=""), line, {"t": 999, "e": "close", "doc": 1})
    with pytest.raises(InputError) as caught:
        read_trace(path)
    assert str(caught.value).startswith(f"{path}:4: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("header", [{}, {"fimserver_trace": 2}, [1], "nonsense", ""])
def test_another_format_is_refused(header, written):
    with pytest.raises(InputError, match=r"work\.jsonl:1: not the header of a trace"):
        read_trace(written(header, OPEN, key()))


def test_positions_are_judged_by_the_text_as_it_is_by_then(written):
    far = key(200, at=(2, 0))
    with pytest.raises(InputError, match=r":4: impossible positions"):
        read_trace(written(HEADER, OPEN, key(at=(0, 0), end=(1, 0), text=""), far))
    assert read_trace(written(HEADER, OPEN, far)).events[1].edits[0].line == 2


def test_a_recording_that_broke_off_is_read_to_its_last_whole_line(written):
    assert len(read_trace(written(HEADER, OPEN, key(), '{"t": 100, "e": "cl', end="")).events) == 2


def test_a_damaged_last_line_that_was_finished_is_an_error(written):
    with pytest.raises(InputError, match=":4: "):
        read_trace(written(HEADER, OPEN, key(), '{"t": 100, "e": "cl'))


@pytest.mark.parametrize(
    "lines", [[HEADER], [HEADER, OPEN], [HEADER, OPEN, {"t": 9, "e": "close", "doc": 1}]]
)
def test_a_trace_without_keys_is_refused(lines, written):
    with pytest.raises(InputError, match="no key in it"):
        read_trace(written(*lines))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"none\.jsonl cannot be read"):
        read_trace(tmp_path / "none.jsonl")


def test_what_is_written_is_read_again(tmp_path):
    events = (
        Open(t=0, doc=1, language="go", name="é.go", text="a\r\nb"),
        Change(t=1.5, doc=1, edits=(Patch(0, 1, 1, 0, "😀\n"), Patch(0, 0, 0, 0, "x"))),
        SuggestionRequested(t=2, doc=1, line=1, char=1, invoked=False),
        Close(t=3, doc=1),
    )
    trace = Trace("t", events, "2026-01-31T12:00:00+00:00", "0.1.0", "by hand")
    write_trace(tmp_path / "t.jsonl", trace)
    assert read_trace(tmp_path / "t.jsonl") == trace
    assert stat.S_IMODE((tmp_path / "t.jsonl").stat().st_mode) == 0o600


def typed_out(trace):
    texts = Texts()
    for event in trace.events:
        texts.play(event)
    return texts.documents[1].text


CODE = 'def f(a):\n    """Say é."""\n    if a:\n        return 1\n    return 2\n\n\ndef g():\n    pass\n'


@pytest.mark.parametrize(("first", "last"), [(1, 9), (2, 5), (4, 4), (9, 9), (6, 7)])
def test_a_made_trace_types_the_lines_back(first, last):
    trace = make_trace("pkg/f.py", CODE, first, last, seed=3)
    assert typed_out(trace) == CODE
    assert trace.events[0].name == "f.py"
    assert trace.made == MADE.format(seed=3)
    assert [event.t_ms for event in trace.events] == sorted(event.t_ms for event in trace.events)


def test_made_traces_are_the_same_for_a_seed(tmp_path):
    (tmp_path / "f.py").write_text(CODE)
    for folder in ("one", "two"):
        make_traces([f"{tmp_path / 'f.py'}:2-5", "--seed", "4", "--out", str(tmp_path / folder)])
    one, two = (read_trace(tmp_path / folder / "f-2-5.jsonl") for folder in ("one", "two"))
    assert one == two
    assert "synthetic timing" in one.made
    assert one.events != make_trace("f.py", CODE, 2, 5, seed=5).events


@pytest.mark.parametrize("spec", ["f.py", "f.py:5-2", "f.py:0-2", "f.py:1-99", "f.py:a-b"])
def test_lines_that_are_not_there(spec, tmp_path):
    (tmp_path / "f.py").write_text(CODE)
    with pytest.raises(InputError, match=r"f\.py"):
        make_traces([f"{tmp_path}/{spec}", "--out", str(tmp_path)])
