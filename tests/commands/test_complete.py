"""The command line gives what the language server gives at the same cursor: the same request, the same text."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from fimserver.cli import main
from fimserver.commands.complete import valid_unicode
from fimserver.engine.engines import ModelPool
from fimserver.host.fake import FakeEngines
from fimserver.settings import Settings
from tests.editor import Editor
from tests.hosts import ScriptedHost

PYTHON = """import os


def read(path, limit=10):
    with open(path) as file:
        lines = file.readlines()
    return lines[:limit]


class Box:
    def __init__(self, width, height):
        self.width = width
        self.height =

    def area(self):
        return self.width * self.height


print(read(), max([1, 2)
"""
GO = "package main\n\nfunc main() {\n\tx := 1\n\tif x > 0 {\n\t\t\n\t}\n}\n"
TEXT = "Dear reader,\n\nthis is no code. It has \n"
PLACES = [
    *(
        ("a.py", PYTHON, line, column)
        for line, column in ((1, 8), (4, 10), (5, 15), (6, 17), (7, 12), (13, 22), (15, 1), (19, 12))
    ),
    *(("a.py", PYTHON, line, column) for line, column in ((8, 1), (13, 1), (16, 16), (19, 24))),
    *(("src/main.go", GO, line, column) for line, column in ((4, 2), (5, 10), (6, 3))),
    ("notes.txt", TEXT, 3, 25),
    ("dos.py", PYTHON.replace("\n", "\r\n"), 6, 17),
    ("long.py", "value = compute(1, 2)\n" * 3000 + "x = \n" + "print(value)\n" * 2000, 3001, 5),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The workspace of the editor, and the current folder of the shell."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def in_editor(host, folder, name, text, line, column, route="auto"):
    """The first suggestion of the language server: text and replaced characters; nothing where it shows none."""
    uri = (folder / name).as_uri()
    with Editor("process", host.url) as editor:
        options = {"model": route, "deadlineMs": 10_000, "delayMs": 0}
        roots = [{"uri": folder.as_uri(), "name": folder.name}]
        editor.start(options=options, rootUri=folder.as_uri(), workspaceFolders=roots)
        editor.open(
            uri, text, language={"py": "python", "go": "go", "txt": "plaintext"}[name.rsplit(".", 1)[1]]
        )
        items = editor.ask(uri, line - 1, column - 1)
    if not items:
        return "", 0
    found = items[0]["range"]
    return items[0]["insertText"], found["end"]["character"] - found["start"]["character"]


def on_command_line(folder, name, text, line, column, *arguments):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode())
    result = CliRunner().invoke(
        main, ["complete", f"{path}:{line}:{column}", "--json", *arguments], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize(("name", "text", "line", "column"), PLACES)
def test_the_engine_gets_the_same_request_from_both(name, text, line, column, folder, monkeypatch):
    here = FakeEngines(lambda _request, _route: iter(["x"]))
    monkeypatch.setattr("fimserver.engine.engines.ModelPool", lambda _settings: here)
    with ScriptedHost() as host:
        host.says("x")
        in_editor(host, folder, name, text, line, column)
        on_command_line(folder, name, text, line, column)
        (there,) = host.engines.asked
    assert here.asked == [replace(there, deadline_ms=None)]  # on the command line nobody waits
    assert there.features is not None
    assert there.canvas_tokens > 0  # it was fitted to the length that is expected


@pytest.fixture(scope="module")
def nano():
    """A host with the shipped model."""
    settings = Settings(device="cpu", threads=1, ar_card="nano", dllm_card="nano")

    def load():
        pool = ModelPool(settings)
        for route in ("dllm", "ar"):
            pool.engine(route)
        return pool

    with ScriptedHost(load) as host:
        Editor.wait_until(lambda: host.scheduler.state is None, 60)
        yield host


@pytest.mark.parametrize("route", ["ar", "dllm"])
@pytest.mark.parametrize(("name", "text", "line", "column"), PLACES)
def test_both_show_the_same(route, name, text, line, column, folder, nano):
    there = in_editor(nano, folder, name, text, line, column, route)
    here = on_command_line(folder, name, text, line, column, "--model", route)
    assert (here["shown"].replace("\r\n", "\n"), here["replaced"]) == there
    assert (here["hidden"] is None) == bool(here["shown"])


class TestAHostElsewhere:
    @pytest.fixture
    def host(self):
        with ScriptedHost(token="secret", allowed_hosts=frozenset({"127.0.0.1"})) as host:
            host.says("4", "2")
            yield host

    def run(self, *arguments):
        return CliRunner().invoke(main, ["complete", *map(str, arguments)], catch_exceptions=False)

    def test_it_answers_and_no_model_is_loaded_here(self, host, folder, monkeypatch):
        monkeypatch.setattr(
            "fimserver.engine.engines.ModelPool", lambda _settings: pytest.fail("a model was loaded")
        )
        found = on_command_line(folder, "a.py", "x = \n", 1, 5, "--connect", host.url, "--token", "secret")
        assert (found["middle"], found["shown"], found["model"]) == ("42", "42", "fake")
        assert len(host.engines.asked) == 1

    def test_it_gets_the_request_that_an_engine_here_gets(self, host, folder, monkeypatch):
        here = FakeEngines(lambda _request, _route: iter(["42"]))
        monkeypatch.setattr("fimserver.engine.engines.ModelPool", lambda _settings: here)
        for place in (
            ("--seed", "7", "--top-p", "0.5"),
            ("--max-tokens", "9"),
            ("--stop", "block", "--temperature", "1"),
        ):
            on_command_line(folder, "a.py", PYTHON, 6, 17, *place)
            on_command_line(folder, "a.py", PYTHON, 6, 17, *place, "--connect", host.url, "--token", "secret")
        assert host.engines.asked == here.asked

    def test_spans_go_there_too(self, host, tmp_path):
        spans = tmp_path / "spans.jsonl"
        spans.write_text('{"id": 1, "prefix": "x = ", "suffix": ""}\n')
        result = self.run("--spans", spans, "--connect", host.url, "--token", "secret")
        assert json.loads(result.stdout)["completion"] == "42"

    def test_a_trace_needs_the_engine_here(self, host, folder):
        (folder / "a.py").write_text("x = \n")
        result = self.run("a.py:1:5", "--connect", host.url, "--trace")
        assert result.exit_code == 2
        assert "leave --connect out" in result.stderr

    @pytest.mark.parametrize(
        ("token", "said"), [("wrong", "the token is missing or wrong"), ("", "the token is missing or wrong")]
    )
    def test_a_wrong_token_is_one_line(self, token, said, host, folder):
        (folder / "a.py").write_text("x = \n")
        result = self.run("a.py:1:5", "--connect", host.url, "--token", token)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert said in result.stderr


@pytest.mark.parametrize(
    ("text", "sound"),
    [("a", "a"), ("é🎉", "é🎉"), ("\ud83c", "�"), ("a\udf89b", "a�b"), ("\ud83c\udf89", "🎉")],
)
def test_half_characters_become_the_replacement_character(text, sound):
    assert valid_unicode(text) == sound


def test_explain_says_what_of_the_file_was_read(tmp_path):
    path = tmp_path / "long.py"
    path.write_text("".join(f"value_{i} = compute({i})\n" for i in range(400)), "utf-8")
    result = CliRunner().invoke(
        main,
        ["complete", f"{path}:300:1", "--explain", "--max-tokens", "2", "--ar-card", "nano", "--model", "ar"],
    )
    assert result.exit_code == 0, result.output
    line = next(line for line in result.output.splitlines() if line.startswith("prompt: "))
    assert "tokens of at most 448; left out: " in line
    assert "lines at the top" in line
    assert "lines at the bottom" in line
