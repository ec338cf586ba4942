"""When the host is asked: after a pause in a burst of keys, with the prompt already prefilled."""

import time

import pytest

URI = "file:///work/main.py"


def burst(editor, text="value = com"):
    """Keys at 25 a second, a request behind each, as an editor without a delay of its own does it."""
    editor.open(URI, "\n")
    posted = []
    for i, char in enumerate(text):
        editor.type(URI, i + 2, 0, i, char)
        posted.append(editor.post("textDocument/inlineCompletion", editor.params(URI, 0, i + 1)))
        time.sleep(0.04)
    return [(editor.answer(request)["result"] or {"items": []})["items"] for request in posted]


def test_a_burst_of_keys_does_not_ask_the_model_for_every_key(editor, host):
    host.says("pute(1)")
    answers = burst(editor)
    assert answers[-1][0]["insertText"] == "pute(1)"
    assert host.engines.asked[-1].prefix == "value = com"
    assert len(host.engines.asked) < len(
        answers
    )  # once the rhythm is known, and as far as this machine keeps it


def test_the_prompt_is_read_while_the_next_key_is_waited_for(editor, host):
    host.says("pute(1)")
    burst(editor)
    assert host.engines.warmed


def test_without_delay_every_key_asks(connected, host):
    connected.start(options={"delayMs": 0})
    host.says("pute(1)")
    burst(connected, "ab")
    assert host.engines.warmed == []


def test_what_is_asked_explicitly_does_not_wait(editor, host):
    host.says("pute(1)")
    editor.open(URI, "\n")
    for i, char in enumerate("value = com"):
        editor.type(URI, i + 2, 0, i, char)
    assert editor.ask(URI, 0, 11, invoked=True)
    assert host.engines.warmed == []


def test_an_open_file_helps_another(editor, host):
    host.says("load_settings(path)")
    editor.open("file:///work/config.py", "def load_settings(path):\n    return read_settings_file(path)\n")
    editor.open(URI, "from config import load_settings\n\n\ndef main(path):\n    settings = load_set\n")
    editor.ask(URI, 4, 23)
    snippets = host.engines.asked[-1].snippets
    assert [snippet.path for snippet in snippets] == ["config.py"]
    assert "def load_settings(path):" in snippets[0].text


def test_text_typed_since_the_first_request_is_told_apart(editor, host):
    editor.open(URI, "def f():\n    \n")
    editor.ask(URI, 1, 4)
    editor.type(URI, 2, 1, 4, "ret")
    editor.ask(URI, 1, 7)
    assert [request.typed_chars for request in host.engines.asked] == [0, 3]


def test_the_prompt_is_read_where_the_cursor_rests(connected, host):
    connected.start(options={"prefetch": True})
    editor = connected
    editor.open(URI, "def f():\n    \n")
    editor.notify(
        "textDocument/didFocus", {"textDocument": {"uri": URI}, "position": {"line": 1, "character": 4}}
    )
    editor.wait_until(lambda: host.engines.warmed)
    assert [request.prefix for request in host.engines.warmed] == ["def f():\n    "]
    assert host.engines.asked == []


@pytest.mark.parametrize(
    "position",
    [
        None,
        3,
        {},
        {"line": "1", "character": 4},
        {"line": -7, "character": -1},
        {"line": 10**9, "character": 10**9},
    ],
)
def test_a_focus_of_any_shape_is_no_error(position, editor, host):
    editor.open(URI, "x = 1\n")
    editor.notify("textDocument/didFocus", {"textDocument": {"uri": URI}, "position": position})
    host.says("1")
    assert editor.ask(URI, 0, 5, invoked=True)
