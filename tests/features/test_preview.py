"""The canvas of each denoising step for editors that ask for it."""

from itertools import dropwhile, repeat

import pytest

from fimserver.types import Slot

URI = "file:///work/main.py"
TEXT = "x = '\N{GRINNING FACE}'; a = \n"
MASKS = (Slot("", masked=True), Slot("", masked=True))
HALF = (Slot("b", masked=False, fresh=True), Slot("", masked=True))
DRAWN = [{"text": "b", "masked": False, "fresh": True}, {"text": "", "masked": True, "fresh": False}]


def canvases(editor):
    return [n["params"] for n in editor.notifications if n["method"] == "fimserver/canvas"]


def begin(connected, host, *steps):
    connected.start("vscode", options={"preview": True})
    host.says(*steps)
    connected.open(URI, TEXT)


def test_each_step_is_drawn_at_the_cursor_and_taken_away_before_the_answer(connected, host):
    begin(connected, host, MASKS, HALF, "b + c")
    item = connected.ask(URI, 0, 14)[0]
    drawn = canvases(connected)
    assert item["insertText"].endswith("b + c")
    assert [(d["step"], len(d["slots"])) for d in drawn] == [(1, 2), (2, 2), (0, 0)]
    assert drawn[1]["slots"] == DRAWN
    assert all(d["uri"] == URI and d["position"] == {"line": 0, "character": 14} for d in drawn)


def test_the_newest_request_draws_last(connected, host):
    begin(connected, host, MASKS, *repeat(0.005, 2000))
    first = connected.post("textDocument/inlineCompletion", connected.params(URI, 0, 14))
    connected.wait_for(canvases)
    host.says(HALF, "b")
    connected.type(URI, 2, 0, 14, "d")
    connected.ask(URI, 0, 15)
    assert connected.answer(first)["result"] is None
    columns = [d["position"]["character"] for d in canvases(connected)]
    assert columns == sorted(columns)
    last_of_first = next(dropwhile(lambda d: d["position"]["character"] == 15, reversed(canvases(connected))))
    assert last_of_first["slots"] == canvases(connected)[-1]["slots"] == []


@pytest.mark.parametrize("options", [{}, {"preview": False}])
def test_an_editor_that_did_not_ask_gets_no_canvas(options, connected, host):
    connected.start("vscode", options=options)
    host.says(MASKS, HALF, "b + c")
    connected.open(URI, TEXT)
    assert connected.ask(URI, 0, 14)
    assert canvases(connected) == []


def test_a_route_without_a_canvas_answers_as_ever(connected, host):
    begin(connected, host, "b", " + c")
    assert connected.ask(URI, 0, 14)[0]["insertText"].endswith("b + c")
    assert canvases(connected) == []


def test_every_candidate_comes_and_the_first_is_drawn(connected, host):
    connected.start("neovim", options={"preview": True, "candidates": 2})
    host.engines.script = lambda _request, route: iter((MASKS, route))
    connected.open(URI, "a = \n")
    assert [item["insertText"] for item in connected.ask(URI, 0, 4, invoked=True)] == ["ar", "dllm"]
    assert [d["step"] for d in canvases(connected)] == [1, 0]


@pytest.mark.parametrize("failure", [RuntimeError("a"), MemoryError()])
def test_a_model_that_fails_leaves_no_canvas_behind(failure, connected, host):
    begin(connected, host, MASKS, failure)
    assert connected.ask(URI, 0, 14) == []
    assert canvases(connected)[-1]["slots"] == []
    assert connected.explain()["reason"] in {"failed", "out_of_memory"}
