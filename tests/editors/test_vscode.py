"""Features of our extension for VS Code."""

import sys

import pytest

from fimserver import __version__
from fimserver.types import Slot
from tests.editors.conftest import SERVER
from tests.editors.editor import command_line
from tests.editors.energy import on_battery
from tests.editors.places import until
from tests.hosts import ScriptedHost

pytestmark = pytest.mark.vscode
FIRST_HOST_S = 180  # until a host has loaded its model, where the machine has much else to do
MENU = ["Turn completions off", "auto", "dllm", "ar", "Explain the last answer", "Statistics"]
MENU += ["Get a model…", "Doctor", "Restart", "Show log", "Settings"]
DRAWN = """() => [...document.querySelectorAll('.view-line span')]
  .map(span => getComputedStyle(span, '::after').content).filter(text => text !== 'none' && text !== 'normal').join('')"""
OLD = """
import json, sys
head = sys.stdin.buffer.readline()
sys.stdin.buffer.readline()
asked = json.loads(sys.stdin.buffer.read(int(head.split(b":")[1])))
said = {"capabilities": {}, "serverInfo": {"name": "fimserver", "version": "0.0.9"}}
body = json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": said}).encode()
sys.stdout.buffer.write(b"Content-Length: %d\\r\\n\\r\\n%b" % (len(body), body))
sys.stdout.flush()
sys.stdin.buffer.read()
"""


@pytest.fixture
def editor(desks, tmp_path):
    with desks("vscode")(tmp_path) as editor:
        yield editor


@pytest.fixture
def host(editor):
    """A host that says what a test wants, set as ``fimserver.connect``."""
    with ScriptedHost() as host:
        editor.call("set", "fimserver.connect", host.url)
        try:
            editor.wait("a server for it", lambda: any(host.url in command_line(s) for s in editor.servers()))
            editor.wait("it to be ready", lambda: "ready" in editor.status())
            yield host
        finally:
            editor.call("set", "fimserver.connect", None)
            editor.wait("one without", lambda: usual(editor, host), FIRST_HOST_S)


def usual(editor, host):
    servers = editor.servers()
    return (
        servers
        and not any(host.url in command_line(server) for server in servers)
        and "ready" in editor.status()
    )


def program(folder, text):
    path = folder / "fimserver"
    path.write_text(text)
    path.chmod(0o755)
    return path


# ---------------------------------------------------------------- menu and status


def test_the_menu_has_everything(editor):
    until(editor, bool)
    assert editor.entries() == MENU


def test_switched_off_from_the_menu_nothing_is_asked(editor):
    until(editor, bool)
    editor.choose("Turn completions off")
    editor.wait("off in the status", lambda: "completions are off" in editor.status())
    editor.type("q")
    assert editor.settle() is None
    editor.choose("Turn completions on")
    editor.wait("on", lambda: "ready" in editor.status())
    until(editor, bool)


def test_a_setting_that_changes_while_the_server_starts_is_not_lost(editor):
    until(editor, bool)
    editor.command("FIM: Restart")
    editor.call("set", "fimserver.enabled", False)
    try:
        editor.wait("off in the status", lambda: "completions are off" in editor.status())
    finally:
        editor.call("set", "fimserver.enabled", None)
    editor.wait("on", lambda: "ready" in editor.status())


def test_a_canvas_that_is_denoised_is_drawn_where_that_is_wanted(editor, host):
    release = []

    def script(_request, _route):
        yield Slot("one", masked=False, fresh=True), Slot("", masked=True)
        while not release:
            yield 0.01
        yield "one + two"

    host.engines.script = script
    editor.set("fimserver.deadlineMs", 10_000)  # a busy machine takes a while to draw it
    editor.set("fimserver.preview", True)
    try:
        editor.open("preview.py")
        editor.type("x = ")
        editor.wait("the canvas", lambda: editor.page.evaluate(DRAWN) == '"one""▒▒"')
        release.append(True)
        assert (
            editor.wait("the suggestion", editor.ghost).text == "one + two"
        )  # drawn a moment after the answer
        assert editor.page.evaluate(DRAWN) == ""
    finally:
        editor.call("set", "fimserver.preview", False)
        editor.call("set", "fimserver.deadlineMs", None)


# ---------------------------------------------------------------- manners


def comes_when_asked_for(editor, name):
    """Nothing comes by itself, and the suggestion comes on the key for it."""
    editor.open(name)
    editor.type("x = ")
    assert editor.settle() is None
    editor.press("Alt+Backslash")
    assert editor.wait("what was asked for", editor.ghost).text == "one"


def test_on_demand_nothing_comes_unless_it_is_asked_for(editor, host):
    host.says("one")
    editor.set("fimserver.trigger", "onDemand")
    try:
        comes_when_asked_for(editor, "on_demand.py")
    finally:
        editor.call("set", "fimserver.trigger", None)


def test_the_prompt_is_read_where_the_cursor_rests(editor, host):
    host.says("one")
    editor.open("resting.py", b"def f():\n    x = 1\n    y = 2\n")
    editor.call("place", 1, 0)
    editor.wait("it to be read", lambda: "def f():\n" in [warm.prefix for warm in host.engines.warmed], 60)


def test_not_now_is_a_key(editor, host):
    host.says("one")
    editor.open("before.py")
    editor.type("x = ")
    assert editor.settle().text == "one"
    editor.press("Alt+Shift+Backslash")
    editor.wait("a snooze", lambda: "snoozed" in editor.status())
    comes_when_asked_for(editor, "snoozed.py")


def test_a_pause_ends_with_what_is_asked_for(editor, host):
    host.says("one")
    editor.open("before_pause.py")
    editor.type("x = ")
    assert editor.settle().text == "one"
    editor.command("FIM: Pause: Give the Models' Memory Back")
    editor.wait("a pause", lambda: host.scheduler.paused_s > 0)
    comes_when_asked_for(editor, "paused.py")
    assert host.scheduler.paused_s == 0


def test_on_battery_nothing_comes_unless_it_is_asked_for(editor, host, tmp_path):
    host.says("one")
    path, starts = tmp_path / "fimserver", editor.starts()
    editor.server.write_program(path, on_battery(tmp_path))
    with editor.using(path):
        editor.wait("its server", lambda: editor.starts() > starts and "ready" in editor.status())
        editor.set("fimserver.battery", "off")
        try:
            comes_when_asked_for(editor, "battery.py")
        finally:
            editor.call("set", "fimserver.battery", None)
    editor.wait("the usual server", lambda: "ready" in editor.status())


# ---------------------------------------------------------------- before the server is ready


def test_what_was_typed_while_the_server_starts_is_completed_without_another_key(editor, host, tmp_path):
    host.says("one")
    path, starts, begin = tmp_path / "fimserver", editor.starts(), tmp_path / "begin"
    editor.server.write_program(path, SERVER, f"until [ -e '{begin}' ]; do sleep 0.1; done")
    with editor.using(path):
        editor.wait("a start", lambda: "starting" in editor.status())
        editor.open_without_server("early.py")
        editor.type("x = ")
        assert editor.starts() == starts
        begin.touch()
        assert editor.wait("the suggestion", editor.ghost).text == "one"


# ---------------------------------------------------------------- pages


def test_statistics_are_a_page(editor):
    until(editor, bool)
    editor.choose("Statistics")
    page = editor.wait("the page", lambda: editor.page_with("Why nothing was shown"))
    assert "kept / 100 keys" in page


def test_a_first_completion_is_one_command_away(editor):
    until(editor, bool)
    editor.command("FIM: First Steps")
    editor.page.get_by_text("See a first completion").click()
    editor.page.get_by_role("button", name="Try a completion").click()
    editor.wait("ghost text", editor.ghost)
    assert "class Box" in "\n".join(editor.lines())


# ---------------------------------------------------------------- when it fails


def test_a_server_that_dies_is_started_again_four_times_and_then_on_demand(editor):
    until(editor, bool)
    for _ in range(5):
        (server,) = editor.servers()
        server.kill()
        editor.wait(
            "another server, or none",
            lambda server=server: server not in editor.servers() and settled(editor),
        )
    assert "stopped five times" in editor.status()
    editor.choose("Restart")
    editor.wait("it to run again", lambda: "ready" in editor.status())
    until(editor, bool)


def settled(editor):
    return "stopped five times" in editor.status() or (editor.servers() and "ready" in editor.status())


def test_restarts_in_a_row_are_one(editor):
    until(editor, bool)
    before, starts = editor.servers(), editor.starts()
    editor.call("repeat", 3, "fimserver.restartServer")
    editor.wait("another server", lambda: editor.servers() and not editor.servers() & before)
    editor.wait("it to be started", lambda: editor.starts() > starts)
    editor.wait("it to be ready", lambda: "ready" in editor.status())
    assert editor.starts() == starts + 1


def test_a_program_that_is_too_old_is_named(editor, tmp_path):
    path = program(tmp_path, f"#!{sys.executable}\n{OLD}")
    with editor.using(path):
        editor.wait("the verdict", lambda: "fimserver 0.0.9 is too old" in editor.status())


def test_a_program_that_is_none_is_named_and_the_menu_helps(editor, tmp_path):
    path = program(tmp_path, "#!/bin/sh\nexit 3\n")
    with editor.using(path):
        editor.wait("the verdict", lambda: f"{path} does not start" in editor.status())
        assert editor.entries()[:2] == ["Choose the program…", "How to install"]
    editor.wait("the right one", lambda: "ready" in editor.status())


def test_the_doctor_has_a_page(editor):
    """The last one: what it examines goes on for a while."""
    until(editor, bool)
    page = editor.health()
    for fact in (str(editor.server.program), f"runs, version {__version__}", "dllm: nano, ar: nano"):
        assert fact in page
    whole = editor.wait("what the program says", lambda: editor.page_with("torch"), 300)
    assert "something is wrong" not in whole
