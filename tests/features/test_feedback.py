"""Outcomes of suggestions, however an editor reports them, and the status bar."""

from itertools import pairwise

URI = "file:///work/main.py"
TEXT = "a = \n"


def counts(editor):
    return editor.run("stats")["suggestions"]


def suggested(editor, host, text="compute(b)"):
    host.says(text)
    editor.open(URI, TEXT)
    return editor.ask(URI, 0, 4)[0]


def test_accepted_by_the_items_command(editor, host):
    item = suggested(editor, host)
    editor.type(URI, 2, 0, 4, item["insertText"])
    assert editor.call("workspace/executeCommand", item["command"]) is True
    said = counts(editor)["ar"]
    assert (said["shown"], said["accepted"], said["accepted_chars"]) == (1, 1, 10)


def test_typed_through_and_accepted_by_words_is_seen_in_the_edits(editor, host):
    suggested(editor, host)
    editor.type(URI, 2, 0, 4, "c")
    editor.ask(URI, 0, 5)
    editor.type(URI, 3, 0, 5, "ompute")
    editor.notify("textDocument/didClose", {"textDocument": {"uri": URI}})
    said = counts(editor)["ar"]
    assert (said["shown"], said["partly"], said["typed_chars"], said["accepted_chars"]) == (1, 1, 1, 6)


def test_a_suggestion_from_memory_counts_for_the_route_that_wrote_it(editor, host):
    item = suggested(editor, host)
    editor.type(URI, 2, 0, 4, item["insertText"])
    editor.call("workspace/executeCommand", item["command"])
    editor.edit(URI, 3, (0, 4), (0, 14), "")  # undone
    item = editor.ask(URI, 0, 4)[0]
    said = editor.explain()
    assert (said["source"], said["route"], said["model"]) == ("memory", "ar", "fake")
    editor.type(URI, 4, 0, 4, item["insertText"])
    editor.call("workspace/executeCommand", item["command"])
    said = counts(editor)
    assert set(said) == {"ar"}
    assert (said["ar"]["shown"], said["ar"]["accepted"]) == (2, 2)


def test_the_messages_of_copilot_clients(editor, host):
    item = suggested(editor, host)
    editor.notify("textDocument/didFocus", {"textDocument": {"uri": URI}})
    editor.notify("textDocument/didShowCompletion", {"item": item})
    editor.notify("textDocument/didPartiallyAcceptCompletion", {"item": item, "acceptedLength": 7})
    editor.notify("textDocument/didClose", {"textDocument": {"uri": URI}})
    said = counts(editor)["ar"]
    assert (said["shown"], said["partly"], said["accepted_chars"]) == (1, 1, 7)


def test_the_route_is_set_and_given_back(editor, host):
    host.engines.script = lambda _request, route: iter((route,))
    editor.open(URI, TEXT)
    for route, expected in (("ar", "ar"), ("dllm", "dllm"), ("auto", "ar")):
        assert editor.run("setRoute", route) == route
        assert editor.ask(URI, 0, 4)[0]["insertText"] == expected
    assert editor.run("setRoute", "nonsense") == "auto"


def test_a_document_may_have_a_route_of_its_own(editor, host):
    host.engines.script = lambda _request, route: iter((route,))
    editor.open(URI, TEXT)
    assert editor.run("setRoute", "dllm", URI) == "dllm"
    assert editor.ask(URI, 0, 4)[0]["insertText"] == "dllm"
    assert editor.run("setRoute", "nonsense", URI) == "dllm"
    assert editor.run("setRoute", "ar", "file:///never/opened.py") == "auto"
    assert editor.run("setRoute", "auto", URI) == "auto"
    editor.run("clearCache")
    assert editor.ask(URI, 0, 4)[0]["insertText"] == "ar"


def test_a_language_may_have_a_route_of_its_own_and_a_document_another(connected, host):
    host.engines.script = lambda _request, route: iter((route,))
    connected.start(options={"routes": {"python": "dllm", "go": "ar"}, "model": "ar"})
    connected.open(URI, TEXT)
    assert connected.ask(URI, 0, 4)[0]["insertText"] == "dllm"
    connected.run("setRoute", "ar", URI)
    assert connected.ask(URI, 0, 4)[0]["insertText"] == "ar"


def test_a_cleared_cache_asks_the_model_again(editor, host):
    suggested(editor, host)
    assert editor.run("clearCache") == 1
    editor.ask(URI, 0, 4)
    assert len(host.engines.asked) == 2


def test_the_status_bar_is_told_what_changed_and_only_where_it_is_understood(connected, host):
    connected.start(options={"status": True})
    suggested(connected, host)
    connected.run("toggle", False)
    connected.wait_for(lambda e: any(n["params"].get("state") == "off" for n in e.notifications))
    told = [n["params"] for n in connected.notifications if n["method"] == "fimserver/status"]
    answered = next(facts for facts in told if "latencyMs" in facts)
    assert (answered["state"], answered["route"], answered["model"], answered["kind"]) == (
        "ready",
        "ar",
        "fake",
        "Normal",
    )
    assert told[-1]["kind"] == "Inactive"
    assert all(before != after for before, after in pairwise(told))


def test_switched_on_again_the_status_does_not_stay_off(connected, host):
    connected.start(options={"status": True})
    suggested(connected, host)
    connected.run("toggle", False)
    connected.ask(URI, 0, 4)
    connected.run("toggle", True)
    connected.wait_for(lambda e: e.notifications[-1]["params"].get("state") == "ready")


def test_a_window_that_starts_switched_off_has_a_status(connected):
    connected.start(options={"status": True, "enabled": False})
    connected.wait_for(lambda e: any(n["params"].get("state") == "off" for n in e.notifications))


def test_an_editor_that_did_not_say_so_gets_no_status(editor, host):
    suggested(editor, host)
    assert not [n for n in editor.notifications if n["method"] == "fimserver/status"]


def test_why_the_route_was_chosen_is_explained_without_any_text(editor, host):
    suggested(editor, host, "hunter2")
    said = editor.explain()
    assert (said["route"], said["model"], said["reason"], said["shown"]) == ("ar", "fake", "end", 1)
    assert "lexemes" in said["why"]
    assert "hunter2" not in str(said)
