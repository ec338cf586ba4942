"""Ghost text while typing, for four recorded clients and all three encodings."""

import threading

import pytest

from tests.editor import recorded

URI = "file:///work/main.py"
CODE = "def add(a, b):\n    return \n"
CLIENTS = ("neovim", "vscode", "lsp-mode", "eglot")
UNITS = {"utf-8": 4, "utf-16": 2, "utf-32": 1}  # of an emoji


def shown(items, text, cursor):
    """The text of the first item left and right of the cursor's line start, as the editor would insert it."""
    item = items[0]
    start, end = item["range"]["start"]["character"], item["range"]["end"]["character"]
    line = text.split("\n")[item["range"]["start"]["line"]]
    assert start <= cursor <= end
    return line[:start] + item["insertText"] + line[end:]


@pytest.mark.parametrize("client", CLIENTS)
def test_a_suggestion_for_every_client(client, connected, host):
    capabilities = connected.start(client)
    assert capabilities["inlineCompletionProvider"] == {}
    host.says("a ", "+ b")
    connected.open(URI, CODE)
    items = connected.ask(URI, 1, 11)
    assert shown(items, CODE, 11) == "    return a + b"
    assert items[0]["command"]["command"] == "fimserver.accepted"


@pytest.mark.parametrize("encoding", UNITS)
def test_positions_in_every_encoding(encoding, connected, host):
    capabilities = recorded("neovim")["capabilities"] | {"general": {"positionEncodings": [encoding]}}
    assert connected.start(capabilities=capabilities)["positionEncoding"] == encoding
    host.says("party")
    connected.open(URI, 'x = "🎉" + \n')
    connected.type(URI, 2, 0, 5 + UNITS[encoding], "🎉")
    cursor = 9 + 2 * UNITS[encoding]
    item = connected.ask(URI, 0, cursor)[0]
    assert item["range"]["start"] == {"line": 0, "character": cursor}
    assert host.engines.asked[-1].prefix == 'x = "🎉🎉" + '


def test_several_edits_in_one_message_are_applied_in_order(editor, host):
    host.says("done")
    editor.open(URI, "one\ntwo\n")
    first = {
        "range": {"start": {"line": 0, "character": 3}, "end": {"line": 0, "character": 3}},
        "text": "\nnew",
    }
    second = {
        "range": {"start": {"line": 1, "character": 3}, "end": {"line": 2, "character": 3}},
        "text": "er ",
    }
    changes = {"textDocument": {"uri": URI, "version": 2}, "contentChanges": [first, second]}
    editor.notify("textDocument/didChange", changes)
    editor.ask(URI, 1, 6)
    assert host.engines.asked[-1].prefix == "one\nnewer "


def test_typing_through_and_deleting_back_and_accepting_words_ask_no_model(editor, host):
    host.says("compute(b)")
    editor.open(URI, "a = \n")
    assert editor.ask(URI, 0, 4)[0]["insertText"] == "compute(b)"
    editor.type(URI, 2, 0, 4, "c")
    assert editor.ask(URI, 0, 5)[0]["insertText"] == "ompute(b)"
    editor.edit(URI, 3, (0, 4), (0, 5), "")
    assert editor.ask(URI, 0, 4)[0]["insertText"] == "compute(b)"
    editor.type(URI, 4, 0, 4, "compute(")
    assert editor.ask(URI, 0, 12)[0]["insertText"] == "b)"
    assert editor.explain()["source"] == "memory"
    assert len(host.engines.asked) == 1


def test_brackets_that_the_editor_closes_do_not_disturb_typing_through(editor, host):
    host.says("compute(b)")
    editor.open(URI, "a = \n")
    editor.ask(URI, 0, 4)
    editor.type(URI, 2, 0, 4, "compute()")
    items = editor.ask(URI, 0, 12)
    assert shown(items, "a = compute()\n", 12) == "a = compute(b)"
    assert editor.explain()["source"] == "memory"


def test_a_suggestion_that_repeats_the_rest_of_the_line_replaces_it(editor, host):
    host.says("a, b)")
    editor.open(URI, "print()\n")
    items = editor.ask(URI, 0, 6)
    assert shown(items, "print()\n", 6) == "print(a, b)"


def test_the_newest_request_wins_and_the_older_one_is_answered_at_once(editor, host):
    running = threading.Event()

    def script(request, _route):
        if request.prefix.endswith("slow "):
            running.set()
            for _ in range(2000):
                yield 0.005
        yield "answer"

    host.engines.script = script
    editor.open(URI, "# slow \n")
    slow = editor.post("textDocument/inlineCompletion", editor.params(URI, 0, 7))
    assert running.wait(10)
    editor.type(URI, 2, 0, 7, "fast ")
    assert editor.ask(URI, 0, 12)[0]["insertText"] == "answer"
    assert editor.answer(slow)["result"] is None  # an empty list would hide what is shown now (Neovim)


def test_a_superseded_request_is_answered_before_the_one_that_took_its_place(editor, host):
    """Neovim shows whatever answer comes last."""
    running = threading.Event()
    host.says("compute(b)")
    editor.open(URI, "a = \n")
    editor.ask(URI, 0, 4)
    host.engines.script = lambda _request, _route: iter((running.set(), *[0.005] * 2000))
    editor.type(URI, 2, 0, 4, "x")
    slow = editor.post("textDocument/inlineCompletion", editor.params(URI, 0, 5))
    assert running.wait(10)
    editor.edit(URI, 3, (0, 4), (0, 5), "")
    known = editor.post("textDocument/inlineCompletion", editor.params(URI, 0, 4))
    assert editor.answer(known)["result"]["items"]
    assert list(editor.answers).index(slow) < list(editor.answers).index(known)


def test_in_a_file_with_crlf_typing_through_a_line_end_asks_no_model(editor, host):
    host.says("x = 1\n    return x")
    editor.open(URI, "def f():\r\n    \r\nprint(f())\r\n")
    editor.ask(URI, 1, 4)
    editor.type(URI, 2, 1, 4, "x = 1\r\n    ret")
    assert editor.ask(URI, 2, 7)[0]["insertText"] == "urn x"
    assert len(host.engines.asked) == 1


def test_a_cancelled_request_is_answered_at_once_and_stops_the_engine(editor, host):
    running = threading.Event()

    def script(_request, _route):
        running.set()
        while True:
            yield 0.005

    host.engines.script = script
    editor.open(URI, CODE)
    request = editor.post("textDocument/inlineCompletion", editor.params(URI, 1, 11))
    assert running.wait(10)
    editor.notify("$/cancelRequest", {"id": request})
    assert editor.answer(request)["error"]["code"] == -32800
    host.says("after")
    assert editor.ask(URI, 1, 11)[0]["insertText"] == "after"
    assert len(host.engines.stopped) == 1


def test_asked_explicitly_there_are_several_distinct_candidates(editor, host):
    host.engines.script = lambda request, route: iter((f"{route}_{request.sampling.seed}",))
    editor.open(URI, CODE)
    texts = [item["insertText"] for item in editor.ask(URI, 1, 11, invoked=True)]
    assert len(texts) == len(set(texts)) == 3
    assert {text.split("_")[0] for text in texts} == {"dllm", "ar"}


def test_the_deadline_gives_what_stands_on_its_own(connected, host):
    connected.start(options={"deadlineMs": 2000})  # a busy machine begins late

    def script(_request, _route):
        yield "first = 1\n"
        while True:
            yield 0.01

    host.engines.script = script
    connected.open(URI, "def f():\n    \n")
    items = connected.ask(URI, 1, 4)
    assert [item["insertText"] for item in items] == ["first = 1"]
    assert connected.explain()["reason"] == "deadline"


@pytest.mark.parametrize(
    ("popup", "expected"),
    [
        pytest.param("append", "append(x)", id="goes on from what is selected"),
        pytest.param("other", None, id="is not what is typed"),
    ],
)
def test_the_completion_popup(popup, expected, editor, host):
    host.engines.script = lambda request, _route: iter(
        ("(x)",) if request.prefix.endswith("items.append") else ("wrong",)
    )
    editor.open(URI, "items.app\n")
    span = {"start": {"line": 0, "character": 6}, "end": {"line": 0, "character": 9}}
    items = editor.ask(URI, 0, 9, popup={"range": span, "text": popup})
    assert [item["insertText"] for item in items] == ([expected] if expected else [])
    assert items or editor.explain()["reason"] == "popup"


def test_vscode_gets_the_whole_line(connected, host):
    connected.start("vscode")
    host.says("a + b")
    connected.open(URI, CODE)
    item = connected.ask(URI, 1, 11)[0]
    assert (item["insertText"], item["filterText"]) == ("    return a + b", "    return ")
    assert item["range"]["start"]["character"] == 0


def test_line_ends_of_windows(editor, host):
    host.says("x = 1\n    return x")
    editor.open(URI, "def f():\r\n    \r\nprint(f())\r\n")
    item = editor.ask(URI, 1, 4)[0]
    assert item["insertText"] == "x = 1\n    return x"  # editors bring their own line ends
    assert item["range"]["end"] == {"line": 1, "character": 4}


def test_notebook_cells_are_one_text(editor, host):
    host.says("getcwd()")
    cells = [
        {"kind": 2, "document": "cell:1"},
        {"kind": 1, "document": "cell:2"},
        {"kind": 2, "document": "cell:3"},
    ]
    texts = [
        ("cell:1", "python", "import os\n"),
        ("cell:2", "markdown", "# Where"),
        ("cell:3", "python", "os."),
    ]
    editor.notify(
        "notebookDocument/didOpen",
        {
            "notebookDocument": {
                "uri": "file:///n.ipynb",
                "notebookType": "jupyter-notebook",
                "version": 1,
                "cells": cells,
            },
            "cellTextDocuments": [
                {"uri": u, "languageId": lang, "version": 1, "text": t} for u, lang, t in texts
            ],
        },
    )
    item = editor.ask("cell:3", 0, 3)[0]
    assert item["insertText"] == "getcwd()"
    assert item["range"]["start"] == {"line": 0, "character": 3}
    assert host.engines.asked[-1].prefix == "import os\n\n# # Where\nos."


def test_the_follow_up_of_a_suggestion_is_there_before_it_is_asked_for(connected, host):
    editor = connected
    editor.start(options={"prefetch": True})
    host.engines.script = lambda request, _route: iter(
        ("one\n",) if request.prefix.endswith("a = ") else ("two = 2",)
    )
    editor.open(URI, "a = \n")
    assert editor.ask(URI, 0, 4)[0]["insertText"] == "one"
    editor.wait_until(lambda: any(r.prefix.endswith("a = one") for r in host.engines.asked))
    editor.wait_until(lambda: editor.run("stats")["remembered"] == 2)
    editor.type(URI, 2, 0, 4, "one")
    editor.ask(URI, 0, 7)
    assert editor.explain()["source"] == "memory"
