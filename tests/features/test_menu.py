"""The completion menu, for editors that have no ghost text."""

import pytest

URI = "file:///work/main.py"
TEXT = "def add(a, b):\n    ret\n"


def menu(editor, line, character, trigger=1):
    params = editor.params(URI, line, character) | {"context": {"triggerKind": trigger}}
    return editor.call("textDocument/completion", params)


@pytest.mark.parametrize(
    ("client", "option", "offered"),
    [
        ("eglot", "auto", True),  # announces no inline completion
        ("lsp-mode", "auto", True),  # announces it as null
        ("neovim", "auto", False),
        ("vscode", "auto", False),
        ("neovim", "always", True),
        ("eglot", "never", False),
    ],
)
def test_who_gets_it(client, option, offered, connected):
    assert ("completionProvider" in connected.start(client, options={"menu": option})) is offered


def test_an_item_fits_behind_the_word_that_stands_there(connected, host):
    connected.start("eglot")
    host.says("urn a + b")
    connected.open(URI, TEXT)
    found = menu(connected, 1, 7)
    item = found["items"][0]
    assert found["isIncomplete"] is True
    assert item["label"] == "return a + b"
    assert item["filterText"] == "ret"
    assert item["textEdit"]["newText"] == "return a + b"
    assert item["textEdit"]["range"] == {
        "start": {"line": 1, "character": 4},
        "end": {"line": 1, "character": 7},
    }
    assert item["command"]["command"] == "fimserver.accepted"


def test_an_editor_that_may_insert_or_replace_cannot_double_what_the_item_repeats(connected, host):
    connected.start("neovim", options={"menu": "always"})
    host.says("a, b)")
    connected.open(URI, "print()\nshow\n")
    edit = menu(connected, 0, 6)["items"][0]["textEdit"]
    assert edit == {
        "newText": "a, b)",
        "range": {"start": {"line": 0, "character": 6}, "end": {"line": 0, "character": 7}},
    }
    host.says("(x)")
    edit = menu(connected, 1, 4)["items"][0]["textEdit"]
    assert edit["insert"] == edit["replace"]


def test_it_opens_by_itself_so_it_is_not_asked_for_explicitly(connected, host):
    connected.start("eglot")
    host.says("urn a + b")
    connected.open(URI, TEXT)
    for _ in range(3):
        assert len(menu(connected, 1, 7)["items"]) == 1
    assert len(host.engines.asked) == 1


def test_ghost_text_and_menu_do_not_get_in_each_others_way(connected, host):
    connected.start("neovim", options={"menu": "always"})
    host.engines.script = lambda _request, _route: iter((0.05, "urn a + b"))
    connected.open(URI, TEXT)
    ghost = connected.post("textDocument/inlineCompletion", connected.params(URI, 1, 7))
    assert menu(connected, 1, 7)["items"]
    assert connected.answer(ghost)["result"]["items"]


def test_long_and_many_lines_are_one_short_label(connected, host):
    connected.start("eglot")
    host.says("urn (\n        a\n    )")
    connected.open(URI, TEXT)
    assert menu(connected, 1, 7)["items"][0]["label"] == "return ("


def test_nothing_is_an_empty_menu(connected, host):
    connected.start("eglot")
    connected.open(URI, TEXT)
    assert menu(connected, 1, 7)["items"] == []
    assert connected.explain()["reason"] == "empty"
