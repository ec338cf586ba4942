"""What a trace contains of the user's typing, and what it never contains."""

import json
import logging
import stat
import threading

import pytest

from fimserver.ab.items.traces import Change, Close, Open, SuggestionRequested, Texts, read_trace
from fimserver.front.config import Config
from fimserver.front.documents.mirror import Document, Edit, Position
from fimserver.front.feedback.ledger import Ledger
from fimserver.front.feedback.trace_recorder import TraceRecorder, patches
from fimserver.front.session import Session
from tests.editor import Editor
from tests.hosts import ScriptedHost


class NoLine:
    async def close(self):
        pass

    async def send_events(self, _):
        return True


def new_session():
    """A session without an event loop: it sends nothing later."""
    session = Session(Config(), NoLine())
    session.ledger = Ledger("", session.host.send_events, later=lambda *_: None)
    return session


@pytest.fixture
def path(tmp_path):
    return tmp_path / "work.jsonl"


@pytest.fixture
def session(path, tmp_path):
    """A session that records, with a workspace."""
    session = new_session()
    session.set_roots([tmp_path])
    session.record(path)
    yield session
    session.recorder.end()


def recorded(session, path):
    session.recorder.end()
    return read_trace(path).events


def replayed(events):
    """The texts of the documents after the last event."""
    texts = Texts()
    for event in events:
        texts.play(event)
    return [document.text for document in texts.documents.values()]


TEXT = "é = '😀'\r\nb = 2\rc\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
@pytest.mark.parametrize(
    "edits",
    [
        pytest.param([Edit((1, 5), (1, 5), "\r\n    x")], id="a line end"),
        pytest.param([Edit((0, 1), (0, 4), "日本")], id="other alphabets"),
        pytest.param([Edit((0, 7), (1, 0), "")], id="over a line end"),
        pytest.param(
            [Edit((0, 6), (0, 7), "\n"), Edit((1, 0), (1, 1), "😀y"), Edit((1, 1), (1, 2), "z")], id="several"
        ),
        pytest.param([Edit(None, None, "all\r\nnew😀")], id="the whole text"),
        pytest.param(
            [Edit((0, 0), (0, 0), "x"), Edit(None, None, "new"), Edit((0, 1), (0, 99), "😀")], id="mixed"
        ),
        pytest.param([Edit((0, 99), (77, 0), "end")], id="positions that are moved to an end"),
        pytest.param([Edit((2, 0), (2, 0), "half \ud83d")], id="half a character"),
    ],
)
def test_the_trace_has_the_text_that_the_editor_has(edits, encoding, session, path, tmp_path):
    uri = (tmp_path / "a.py").as_uri()
    session.encoding = encoding
    session.open(Document(uri, "python", 1, TEXT))
    for version, edit in enumerate([edits, [Edit((0, 0), (0, 0), "k")]], start=2):
        session.change(uri, version, edit)
    assert replayed(recorded(session, path)) == [session.documents[uri].text.replace("\ud83d", "?")]


def test_what_an_event_says(session, path, tmp_path):
    uri, other = (tmp_path / "src" / "a.py").as_uri(), "untitled:one"
    session.open(Document(uri, "python", 1, "x\n"))
    session.open(Document(other, "plaintext", 1, ""))
    session.change(uri, 2, [Edit((0, 1), (0, 1), "y")])
    for _ in range(2):  # the menu asks for the same
        session.recorder.ask(session.documents[uri], Position(0, 2), invoked=False)
    session.close(uri)
    events = recorded(session, path)
    assert [type(event) for event in events] == [Open, Open, Change, SuggestionRequested, Close]
    assert [(event.name, event.language) for event in events[:2]] == [("a.py", "python"), ("", "plaintext")]
    assert (events[3].line, events[3].char, events[3].invoked) == (0, 2, False)
    assert [event.doc for event in events] == [1, 2, 1, 1, 1]
    assert str(tmp_path) not in path.read_text()


def test_a_file_of_this_user_only(session, path):
    session.recorder.end()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nothing_is_written_over(session, path, tmp_path):
    session.recorder.end()
    before = path.read_bytes()
    for _ in range(2):
        TraceRecorder(path, lambda _: True).end()
    TraceRecorder(tmp_path, lambda _: True).end()
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "trace.jsonl",
        "work-2.jsonl",
        "work-3.jsonl",
        "work.jsonl",
    ]


@pytest.mark.parametrize("name", [".env", "id_rsa", "server.key", "app.min.js", "ignored.py"])
def test_files_that_privacy_excludes_are_never_there(name, session, path, tmp_path):
    (tmp_path / ".gitignore").write_text("ignored.py\n")
    uri, fine = (tmp_path / name).as_uri(), (tmp_path / "fine.py").as_uri()
    session.open(Document(uri, "python", 1, "SECRET = 1\n"))
    session.open(Document(fine, "python", 1, ""))
    session.change(uri, 2, [Edit((0, 0), (0, 0), "SECRET")])
    session.recorder.ask(session.documents[uri], Position(0, 0), invoked=True)
    session.change(fine, 2, [Edit((0, 0), (0, 0), "x")])
    session.close(uri)
    assert [type(event) for event in recorded(session, path)] == [Open, Change]
    assert "SECRET" not in path.read_text()
    assert name not in path.read_text()


def test_a_document_leaves_the_trace_and_comes_back_with_what_may_be_known_of_it(session, path, tmp_path):
    uri = (tmp_path / "a.py").as_uri()
    session.open(Document(uri, "python", 1, "a\n"))
    session.change(uri, 2, [Edit((0, 1), (0, 1), "b")])
    session.configure(Config(exclude=("*.py",)))
    session.change(uri, 3, [Edit((0, 2), (0, 2), "SECRET")])
    session.change(uri, 4, [Edit((0, 2), (0, 8), "")])
    session.configure(Config())
    session.change(uri, 5, [Edit((0, 2), (0, 2), "c")])
    events = recorded(session, path)
    assert [type(event) for event in events] == [Open, Change, Close, Open, Change]
    assert replayed(events) == ["abc\n"]
    assert "SECRET" not in path.read_text()


def test_a_document_whose_text_is_lost_leaves_the_trace(session, path, tmp_path):
    uri = (tmp_path / "a.py").as_uri()
    session.open(Document(uri, "python", 1, "a\n"))
    session.change(uri, 2, [Edit((0, 1), (0, 1), "b")])
    session.change(uri, 3, [Edit((0, 2), (0, 0), "c")])
    session.change(uri, 4, [Edit((0, 0), (0, 0), "d")])
    assert [type(event) for event in recorded(session, path)] == [Open, Change, Close]


@pytest.mark.parametrize("name", ["file/t.jsonl", "long" * 100, "/dev/null/t.jsonl"])
def test_a_file_that_cannot_be_written_ends_the_recording_and_nothing_else(name, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    session = new_session()
    session.record(tmp_path / name).end()
    session.open(Document("untitled:1", "python", 1, "PRIVATE"))
    session.change("untitled:1", 2, [Edit((0, 0), (0, 0), "PRIVATE")])
    assert session.documents["untitled:1"].text == "PRIVATEPRIVATE"
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["recording has stopped"]
    assert "PRIVATE" not in caplog.text
    assert str(tmp_path) not in caplog.text


def test_a_fault_of_the_recording_leaves_the_edit_alone(session, caplog):
    def broken(_):
        raise RuntimeError("PRIVATE")

    session.open(Document("untitled:1", "python", 1, "a"))
    session.recorder._may = broken
    session.change("untitled:1", 2, [Edit((0, 1), (0, 1), "b")])
    assert session.documents["untitled:1"].text == "ab"
    assert [record.getMessage() for record in caplog.records] == ["recording has stopped: RuntimeError"]


def test_a_disk_that_does_not_keep_up_ends_the_recording(session, monkeypatch, caplog):
    monkeypatch.setattr("fimserver.front.feedback.trace_recorder.MAX_WAITING", 5)
    session.open(Document("untitled:1", "python", 1, ""))
    for version in range(2, 12):
        session.change("untitled:1", version, [Edit((0, 0), (0, 0), "x")])
    assert "does not keep up" in caplog.text
    assert session.documents["untitled:1"].text == "x" * 10


def test_events_reach_the_disk_while_the_window_lives(session, path):
    session.open(Document("untitled:1", "python", 1, "here"))
    Editor.wait_until(lambda: "here" in (path.read_text() if path.exists() else ""))


def test_patches_leave_the_document_as_it_is():
    document = Document("u", "python", 1, TEXT)
    found = patches(document, [Edit((0, 4), (0, 4), "a\n"), Edit((1, 0), (1, 2), "")], "utf-16")
    assert found == [(0, 4, 0, 4, "a\n"), (1, 0, 1, 1, "")]
    assert (document.text, document.revision) == (TEXT, 0)


@pytest.fixture
def window(path):
    with ScriptedHost() as host, Editor("pipes", host.url, env={"FIMSERVER_RECORD": str(path)}) as editor:
        host.says("x")
        editor.start("vscode")
        yield editor


@pytest.mark.parametrize("ends", ["goodbye", "a signal", "the pipe"])
def test_a_window_writes_all_of_its_trace_however_it_ends(ends, window, path):
    window.open("untitled:1", "😀a\r\n")
    window.type("untitled:1", 2, 0, 3, "b")  # UTF-16
    window.ask("untitled:1", 0, 4, invoked=True)
    if ends == "goodbye":
        window.leave()
    elif ends == "a signal":
        window.link.process.terminate()
    else:
        window.link.process.stdin.close()
    window.link.process.wait(20)
    opened, changed, asked = read_trace(path).events
    assert opened.text == "😀a\r\n"
    assert changed.edits == ((0, 2, 0, 2, "b"),)
    assert (asked.line, asked.char, asked.invoked) == (0, 3, True)


def test_nothing_is_recorded_unless_it_is_wanted(tmp_path):
    session = new_session()
    session.open(Document((tmp_path / "a.py").as_uri(), "python", 1, "x"))
    assert session.recorder is None
    assert not any(thread.name == "recorder" for thread in threading.enumerate())
    assert list(tmp_path.iterdir()) == []


def test_the_header_says_what_it_is(session, path):
    session.recorder.end()
    header = json.loads(path.read_text().splitlines()[0])
    assert header["fimserver_trace"] == 1
    assert set(header) == {"fimserver_trace", "version", "started"}


@pytest.fixture(autouse=True)
def _log(caplog):
    caplog.set_level(logging.DEBUG, "fimserver.front")
