"""The outcomes that a window sends to its host, from the key to the page: counted, compared, and without any text."""

import contextlib
import functools
import json
import time

import httpx2
import pytest

from fimserver.commands.stats_view import show_stats
from fimserver.errors import InputError
from fimserver.front.feedback.live_ab import BLOCK_S, LiveComparison
from fimserver.host.stats.store import EmptyError, Stats, reading
from fimserver.host.stats.summary import Summary
from fimserver.settings import Settings
from tests.editor import Editor
from tests.hosts import ScriptedHost

URI = "file:///work/secretfolder/secretfile.py"
TEXT = "canaryname = \n"
SAYS = {"ar": "canaryalpha(b)", "dllm": "canarybeta(c)"}
PATIENCE_S = 60.0  # for what a window tells its host
TOKEN = "s3cr3t"  # noqa: S105 - of a host that lives as long as a test


@pytest.fixture
def counting(host, tmp_path):
    """The host with a file to count in, and what it was told."""
    host.host.stats = Stats(tmp_path / "data" / "stats.sqlite")
    host.told, add = [], host.host.stats.add
    host.host.stats.add = lambda batch: (host.told.append(batch.model_dump_json()), add(batch))
    host.engines.script = lambda _request, route: iter((SAYS[route],))
    return host


def counted(host, query, least=1):
    """Rows, once there are so many: windows tell every two seconds."""
    end = time.monotonic() + PATIENCE_S
    while True:
        path = host.host.stats.path
        found = []
        if path.exists():
            with contextlib.suppress(EmptyError), reading(path) as base:
                found = base.execute(query).fetchall()
        if len(found) >= least:
            return found
        assert time.monotonic() < end, "it was never told"
        time.sleep(0.05)


def used(editor):
    """A suggestion that is accepted, keys, and a document that is closed."""
    editor.open(URI, TEXT)
    (item,) = editor.ask(URI, 0, 13)
    editor.type(URI, 2, 0, 13, item["insertText"])
    editor.type(URI, 3, 1, 0, "q")
    editor.notify("textDocument/didClose", {"textDocument": {"uri": URI}})
    return item["insertText"]


def test_an_accepted_suggestion_is_counted_without_its_text(counting, editor):
    text = used(editor)
    query = "SELECT language, route, model, shown, fate, accepted_chars, chars, kept_60s, reason FROM answers WHERE fate != ''"
    route = next(route for route in SAYS if SAYS[route] == text)
    assert counted(counting, query) == [
        ("python", route, "fake", 1, "full", len(text), len(text), len(text), "end")
    ]
    assert counted(counting, "SELECT language, count FROM counts WHERE name = 'keys'") == [("python", 1)]
    raw = b"".join(file.read_bytes() for file in counting.host.stats.path.parent.iterdir())
    for word in (b"canary", b"secret", b"/work"):
        assert word not in raw
        assert word not in "".join(counting.told).encode()


def test_why_nothing_was_shown_is_counted(counting, editor):
    counting.says("")
    editor.open(URI, TEXT)
    assert editor.ask(URI, 0, 13) == []
    assert counted(counting, "SELECT reason, shown, chars FROM answers") == [("empty", 0, 0)]


def test_typing_through_is_one_answer(counting, editor):
    editor.open(URI, TEXT)
    (item,) = editor.ask(URI, 0, 13)
    for i, char in enumerate(item["insertText"][:4]):
        editor.type(URI, 2 + i, 0, 13 + i, char)
        assert editor.ask(URI, 0, 14 + i)
    editor.notify("textDocument/didClose", {"textDocument": {"uri": URI}})
    query = "SELECT number, fate, typed_chars, kept_60s FROM answers WHERE fate != ''"
    assert counted(counting, query) == [(1, "left", 4, 4)]
    assert counted(counting, "SELECT COUNT(*) FROM answers") == [(1,)]


def test_a_document_keeps_its_route_for_its_turn_and_is_told_why(counting, connected):
    connected.start(options={"ab": "blocks"})
    connected.open(URI, "\n" * 40)
    said = []
    for line in range(4):
        connected.ask(URI, 10 * line, 0)
        said.append(connected.explain())
    assert all(facts["why"].startswith(f"A/B: this document has {facts['route']} until ") for facts in said)
    connected.run("setRoute", "ar")
    connected.ask(URI, 35, 0)
    assert not connected.explain()["why"].startswith("A/B")
    rows = counted(counting, "SELECT policy, propensity, block > 0, first FROM answers ORDER BY number", 5)
    assert rows[0] == ("blocks", 0.5, 1, 1)
    assert rows[-1] == ("", 1.0, 0, 0)
    assert (
        len({facts["route"] for facts in said}) == 1 or ("blocks", 0.5, 1, 1) in rows[1:]
    )  # a new block began


@pytest.fixture
def within_a_block(monkeypatch):
    """Windows of this process that compare routes as if no five-minute block ended."""
    stopped = functools.partial(LiveComparison, clock=lambda: 1000.0 * BLOCK_S)
    monkeypatch.setattr("fimserver.front.session.LiveComparison", stopped)


@pytest.mark.usefixtures("within_a_block")
def test_the_other_route_is_asked_unseen(counting):
    with Editor("process", counting.url) as window:
        window.start(options={"ab": "shadow"})
        window.open(URI, TEXT)
        (item,) = window.ask(URI, 0, 13)
        shadows = (
            "SELECT route, shadow_route, shadow_chars, shadow_reason FROM answers WHERE shadow_route != ''"
        )
        ((shown, other, chars, reason),) = counted(counting, shadows)
        assert {shown, other} == {"ar", "dllm"}
        assert (item["insertText"], chars, reason) == (SAYS[shown], len(SAYS[other]), "end")
        (again,) = window.ask(URI, 0, 13)
        assert again["insertText"] == SAYS[shown]
        window.notify("textDocument/didClose", {"textDocument": {"uri": URI}})
        kept = "SELECT kept_60s, shadow_kept_60s FROM answers WHERE kept_60s NOT NULL"
        assert counted(counting, kept) == [(0, 0)]
        assert SAYS[other] not in json.dumps([window.answers, window.notifications])
    assert "canary" not in "".join(counting.told)


def test_without_a_comparison_the_other_route_is_not_asked(counting, editor):
    used(editor)
    counted(counting, "SELECT 1 FROM answers WHERE fate != ''")
    assert len(counting.engines.asked) == 1


def test_a_window_that_says_goodbye_tells_first(counting):
    with Editor("process", counting.url) as editor:
        editor.start()
        used(editor)
        editor.call("shutdown")
        assert counted(counting, "SELECT fate FROM answers") == [("full",)]


# ---------------------------------------------------------------- the host's side


@pytest.fixture
def client(counting):
    with httpx2.Client(base_url=counting.url, trust_env=False, timeout=PATIENCE_S) as client:
        yield client


@pytest.mark.parametrize(
    ("body", "named"),
    [(b"x", "body"), (b'{"session": "canary!"}', "session"), (b" " * (1 << 21), "larger than 1 MiB")],
)
def test_events_that_cannot_be_used_are_refused_and_named(client, body, named):
    response = client.post("/v1/events", content=body)
    assert response.status_code == 400
    assert named in response.json()["error"]["message"]
    assert "canary" not in response.text


def test_the_page_and_its_numbers(client, counting):
    with Editor("process", counting.url) as editor:
        editor.start()
        used(editor)
        counted(counting, "SELECT 1 FROM answers WHERE fate != ''")
    page = client.get("/stats")
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert page.headers["referrer-policy"] == "no-referrer"
    assert 'http-equiv="refresh"' in page.text
    found = Summary.model_validate(client.get("/stats.json?days=7").json())
    assert (found.days, found.routes[0].shown, found.routes[0].full) == (7, 1, 1)


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/stats", {}, 401),
        ("/stats?token=wrong", {}, 401),
        (f"/stats?token={TOKEN}", {}, 200),
        (f"/stats.json?token={TOKEN}", {}, 200),
        ("/stats", {"Authorization": f"Bearer {TOKEN}"}, 200),
        (f"/stats?token={TOKEN}", {"Origin": "http://evil.example"}, 403),
        (f"/stats?token={TOKEN}", {"Host": "evil.example"}, 403),
        (f"/health?token={TOKEN}", {}, 401),
    ],
)
def test_who_may_see_the_page(path, headers, status):
    names = frozenset({"127.0.0.1"})
    with (
        ScriptedHost(token=TOKEN, allowed_hosts=names) as host,
        httpx2.Client(base_url=host.url, trust_env=False) as client,
    ):
        assert client.get(path, headers=headers).status_code == status


def test_the_terminal_shows_what_the_host_counted(counting, editor, capsys, monkeypatch, tmp_path):
    used(editor)
    counted(counting, "SELECT 1 FROM answers WHERE fate != ''")
    monkeypatch.setattr("fimserver.commands.stats_view.stats_path", lambda: counting.host.stats.path)
    show_stats(Settings())
    near = capsys.readouterr().out
    assert "python" in near
    assert "100%" in near
    show_stats(Settings(connect=counting.url), as_json=True, days=3)
    far = Summary.model_validate_json(capsys.readouterr().out)
    assert (far.days, far.routes[0].shown) == (3, 1)
    show_stats(Settings(), html=tmp_path / "stats.html")
    assert (tmp_path / "stats.html").read_text("utf-8").startswith("<!doctype html>")


def test_the_terminal_says_what_is_missing(capsys, tmp_path):
    show_stats(Settings())
    assert "nothing was counted in the last 30 days" in capsys.readouterr().out
    with pytest.raises(InputError, match="does not answer"):
        show_stats(Settings(connect="http://127.0.0.1:9"))
    with pytest.raises(InputError, match="cannot be written"):
        show_stats(Settings(), html=tmp_path / "no" / "folder.html")
    names = frozenset({"127.0.0.1"})
    with ScriptedHost(token=TOKEN, allowed_hosts=names) as host, pytest.raises(InputError, match="token"):
        show_stats(Settings(connect=host.url, token="wrong"))
