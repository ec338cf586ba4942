"""Contents of an editor's health page in every state of the host."""

import pytest

from fimserver import __version__
from fimserver.errors import ModelError
from fimserver.host.fake import FakeEngines
from tests.editor import Editor
from tests.hosts import ScriptedHost

ALWAYS = {"version", "state", "message", "enabled", "setRoute", "models", "host", "log", "settings"}
PROVED = {"route", "model", "roundTripMs", "engineMs", "tokens"}


def test_a_host_that_can_complete_proves_it(editor, host):
    host.says("a + b")
    said = editor.call("fimserver/health")
    assert set(said) == ALWAYS | PROVED
    assert (said["version"], said["state"], said["message"], said["enabled"]) == (
        __version__,
        "ready",
        "",
        True,
    )
    assert said["models"] == {"dllm": "fake", "ar": "fake"}
    assert (said["route"], said["model"], said["tokens"]) == ("ar", "fake", 1)
    assert 0 <= said["engineMs"] <= said["roundTripMs"]
    assert said["host"].rstrip("/") == host.url
    assert said["log"] == ""  # it is on the other machine


def test_the_pinned_route_is_what_is_tried(connected, host):
    connected.start(options={"model": "dllm"})
    said = connected.call("fimserver/health")
    assert (said["setRoute"], said["route"]) == ("dllm", "dllm")


def test_a_tiny_completion_that_fails_is_a_state(editor, host):
    host.says(ModelError("the weights are gone: fetch them again"))
    said = editor.call("fimserver/health")
    assert set(said) == ALWAYS
    assert (said["state"], said["message"]) == ("no_model", "the weights are gone: fetch them again")


def test_nothing_of_it_is_seen_elsewhere(editor, host):
    editor.call("fimserver/health")
    assert editor.explain()["message"] == "nothing was asked yet"
    assert editor.call("fimserver/stats")["suggestions"] == {}


@pytest.mark.parametrize("kind", ["process", "pipes"])
def test_a_model_that_cannot_be_loaded_is_said(kind):
    def load() -> FakeEngines:
        raise ModelError("no such file")

    with ScriptedHost(load) as host, Editor(kind, host.url) as editor:
        editor.start()
        editor.wait_until(lambda: editor.call("fimserver/health")["state"] == "no_model")
        said = editor.call("fimserver/health")
    assert said["models"] == {}
    assert "no such file" in said["message"]


@pytest.mark.parametrize("kind", ["process", "pipes"])
def test_a_host_that_is_away_is_said(kind):
    with Editor(kind, "http://127.0.0.1:1") as editor:
        editor.start()
        said = editor.call("fimserver/health")
    assert set(said) == ALWAYS
    assert (said["state"], said["host"].rstrip("/")) == ("no_host", "http://127.0.0.1:1")
    assert "http://127.0.0.1:1 does not answer" in said["message"]
    assert "fimserver serve" in said["message"]


def test_a_host_elsewhere_that_is_away_is_nothing_to_wait_for():
    with Editor("process", "http://me:hunter2@127.0.0.1:1") as editor:
        editor.start(options={"status": True})
        editor.wait_for(lambda e: any(n["params"].get("state") == "no_host" for n in e.notifications))
        editor.open("file:///work/main.py", "a = \n")
        assert editor.ask("file:///work/main.py", 0, 4) == []
        told = [n["params"] for n in editor.notifications if n["params"].get("state") == "no_host"]
    assert {(state["busy"], state["kind"]) for state in told} == {(False, "Warning")}
    assert "hunter2" not in str(told)


def test_a_setting_without_effect_is_said_once_and_listed(caplog, host):
    with Editor("process", host.url) as editor:
        editor.start()
        for _ in range(3):
            sent = {"modle": "ar", "maxTokens": -1, "delayMs": 50}
            editor.notify("workspace/didChangeConfiguration", {"settings": {"fimserver": sent}})
        said = editor.call("fimserver/health")["settings"]
        assert [line.split(":")[0] for line in said] == ["'modle'", "maxTokens"]
        logged = [record.getMessage() for record in caplog.records if "setting" in record.getMessage()]
        assert len(logged) == 2
        editor.notify("workspace/didChangeConfiguration", {"settings": {"fimserver": {"model": "ar"}}})
        assert editor.call("fimserver/health")["settings"] == []
        assert not [n for n in editor.notifications if n["method"].startswith("window/show")]
