"""Features of our Neovim plugin, with a scripted host."""

import contextlib
import json
import shutil
import sys
import threading
import time

import pytest

from fimserver import __version__
from fimserver.machine import this_machine
from fimserver.settings import Settings
from fimserver.store.advice import best_models
from tests.editors.editor import Ghost
from tests.editors.energy import on_battery
from tests.editors.neovim import PLUGIN, Neovim, why_not
from tests.hosts import OwnHosts, ScriptedHost

REASON = why_not()
pytestmark = [pytest.mark.neovim, pytest.mark.skipif(bool(REASON), reason=REASON)]
CLI = [sys.executable, "-m", "fimserver.cli"]


@pytest.fixture
def host():
    with ScriptedHost() as host:
        yield host


@pytest.fixture
def user():
    with OwnHosts() as user:
        yield user


@pytest.fixture
def nvim(host, user, tmp_path):
    with Neovim(tmp_path, [*CLI, "--connect", host.url], user.env) as nvim:
        yield nvim
        assert '"inline_completion"' not in nvim.log(), "the server answered with an error"


def shows(nvim, host, *texts, typed="x = ", content=b""):
    """Ghost text: the first of what the host says for the candidates, there and nowhere else."""
    said = iter(texts * 2)
    host.engines.script = lambda request, _route: iter(
        (next(said, texts[0]),) if request.prefix.endswith(typed) else ()
    )
    nvim.open("main.py", content)
    nvim.type(typed)
    ghost = nvim.settle()
    assert ghost
    assert ghost.text == texts[0]
    return ghost


def becomes(nvim, *lines):
    try:
        nvim.wait("these lines", lambda: tuple(nvim.lines()) == lines)
    except TimeoutError:
        assert tuple(nvim.lines()) == lines


def silent(host):
    """From now on no request is answered in time."""

    def script(_request, _route):
        while True:
            yield 0.005

    host.engines.script = script


# ---------------------------------------------------------------- reading ahead


def test_the_prompt_is_read_where_the_cursor_rests(nvim, host):
    host.says()
    nvim.open("main.py", b"def f():\n    x = 1\n    y = 2\n")
    nvim.normal_mode()
    nvim.place(1, 0)
    nvim.wait("the prompt to be read", lambda: "def f():\n" in [warm.prefix for warm in host.engines.warmed])


# ---------------------------------------------------------------- how long a key waits


NOTE_WAITS = """
_G.waits, _G.defer = {}, vim.defer_fn
vim.defer_fn = function(work, ms)
  table.insert(_G.waits, ms)
  return _G.defer(work, ms)
end"""
OTHER_SERVER = """
vim.lsp.start({ name = 'other', cmd = function()
  local able = { capabilities = { inlineCompletionProvider = true } }
  return {
    request = function(method, _, done)
      vim.schedule(function() done(nil, method == 'initialize' and able or { items = {} }) end)
      return true, 1
    end,
    notify = function() return true end,
    is_closing = function() return false end,
    terminate = function() end,
  }
end })"""


def test_a_key_does_not_wait_as_long_as_neovim_would_have_it(nvim, host):
    host.says("hello")
    nvim.open("main.py")
    nvim.lua(NOTE_WAITS)
    nvim.type("x")
    assert nvim.settle().text == "hello"
    assert 40 in nvim.lua("return waits")


def test_beside_another_server_a_key_waits_as_neovim_has_it(nvim, host):
    host.says("hello")
    nvim.open("main.py")
    nvim.lua(OTHER_SERVER)
    nvim.wait("the other server", lambda: nvim.lua("return #vim.lsp.get_clients({ bufnr = 0 })") == 2)
    nvim.lua(NOTE_WAITS)
    nvim.type("x")
    nvim.wait("the suggestion", nvim.ghost)
    waits = nvim.lua("return waits")
    assert 200 in waits
    assert 40 not in waits


FIRED_AND_PRESSED = """
local made, defer = {}, vim.defer_fn -- requests made when a wait begins
vim.defer_fn = function(work, ms)
  if ms == 40 then table.insert(made, asked()) end
  return defer(work, ms)
end
local function press(count)
  vim.api.nvim_exec_autocmds('CursorMovedI', { buffer = 0 })
  vim.wait(60000, function() return #made == count end, 1)
end
press(1)
vim.wait(200, function() end, 10, true) -- the timer fires, and what it does is still to come
press(2)
return made"""


def test_a_key_at_the_moment_of_the_request_for_the_one_before_makes_one_request(nvim, host):
    host.says("hello")
    nvim.open("main.py")
    nvim.type("x")
    nvim.settle()
    before, after = nvim.lua(FIRED_AND_PRESSED)
    assert before == after
    nvim.wait("the request", lambda: nvim.lua(f"return settled({after})"))


def test_leaving_insert_mode_takes_the_request_back(nvim, host):
    host.says("hello")
    nvim.open("main.py")
    nvim.keys("x<Esc>")
    nvim.wait("normal mode", lambda: nvim.mode() == "n")
    nvim.lua(
        "local last; vim.schedule(function() last = true end); vim.wait(60000, function() return last end)"
    )
    assert nvim.lua(
        "return require('vim.lsp._capability').all.inline_completion.active[vim.fn.bufnr()].timer == nil"
    )


# ---------------------------------------------------------------- before the model is there


@contextlib.contextmanager
def loading(user, folder, **options):
    """Neovim, its host whose model is loaded only when the event is set, and that event."""
    loaded = threading.Event()

    def load():
        assert loaded.wait(120)
        return host.engines

    with ScriptedHost(load) as host, Neovim(folder, [*CLI, "--connect", host.url], user.env, options) as nvim:
        host.says("one")
        try:
            yield nvim, host, loaded
        finally:
            loaded.set()


@pytest.mark.parametrize("typed", ["x = ", "def f(a):\n    return ", "größe = "])
def test_what_was_typed_while_the_model_is_loaded_is_completed_without_another_key(typed, user, tmp_path):
    with loading(user, tmp_path) as (nvim, _, loaded):
        nvim.open("main.py")
        nvim.type(typed)
        nvim.wait("the status", lambda: "loading" in nvim.status())
        assert nvim.ghost() is None
        loaded.set()
        assert nvim.wait("the suggestion", nvim.ghost).text == "one"


def test_what_was_typed_while_the_server_starts_is_completed_without_another_key(host, user, tmp_path):
    host.says("one")
    begin = tmp_path / "begin"
    waits = f"until [ -e '{begin}' ]; do sleep 0.1; done; exec \"$@\""
    command = ["sh", "-c", waits, "sh", *CLI, "--connect", host.url]
    with Neovim(tmp_path, command, user.env) as nvim:
        nvim.open_without_server("main.py")
        nvim.type("x = ")
        begin.touch()
        assert nvim.wait("the suggestion", nvim.ghost).text == "one"


@pytest.mark.parametrize(("options", "typed", "leaves"), [
    ({}, "x = ", True), ({}, "", False), ({"trigger": "onDemand"}, "x = ", False),
])  # fmt: skip
def test_nothing_comes_by_itself_where_nobody_waits_for_it(options, typed, leaves, user, tmp_path):
    with loading(user, tmp_path, **options) as (nvim, host, loaded):
        nvim.open("main.py", b"y = ")
        nvim.type(typed)
        if leaves:
            nvim.normal_mode()
        nvim.wait("the status", lambda: "loading" in nvim.status())
        loaded.set()
        nvim.wait("the model", lambda: "loading" not in nvim.status())
        nvim.told()  # is answered after what was asked before
        assert nvim.ghost() is None
        assert host.engines.asked == []


# ---------------------------------------------------------------- acceptance


def test_tab_without_ghost_text_is_a_tab(nvim, host):
    host.says()
    nvim.open("main.py")
    nvim.lua("vim.o.expandtab = false")
    nvim.keys("a<Tab>b")
    becomes(nvim, "a\tb")


def test_tab_right_after_typing_into_the_ghost_text_doubles_nothing(nvim, host):
    shows(nvim, host, "hello(world)")
    silent(host)
    nvim.keys("hel<Tab>")
    becomes(nvim, "x = hello(world)")


@pytest.mark.parametrize("enabled", [False, True])
def test_tab_after_typing_something_else_is_a_tab(enabled, nvim, host):
    if enabled:  # by the user, for everything, before we come
        nvim.lua("vim.lsp.inline_completion.enable()")
    shows(nvim, host, "hello(world)")
    silent(host)
    nvim.lua("vim.o.expandtab = false")
    nvim.type("q")
    nvim.wait("no rest of what does not fit", lambda: nvim.ghost() is None)
    nvim.keys("<Tab>")
    becomes(nvim, "x = q\t")
    nvim.keys("<BS><BS>")
    nvim.wait("it to come back", lambda: (ghost := nvim.ghost()) and ghost.text == "hello(world)")


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("one + two", ["one", " +", " two"]),
        ("größe(é)", ["größe", "(", "é", ")"]),
        ("a\n    b", ["a", "\n    b"]),
    ],
)
def test_word_by_word_to_the_end_is_an_acceptance(text, pieces, nvim, host):
    shows(nvim, host, text, typed="def f(größe, é):\n    x = ")
    taken = nvim.before_cursor()
    for number, piece in enumerate(pieces):
        nvim.keys("<M-w>")
        taken += piece
        nvim.wait(f"{taken!r}", lambda taken=taken: nvim.before_cursor() == taken)
        rest = "".join(pieces[number + 1 :])
        assert (nvim.ghost().text if rest else nvim.ghost()) == (rest or None)
    nvim.wait("it to be counted", lambda: counted(nvim).get("accepted") == 1)


def counted(nvim):
    return nvim.lua(
        "return vim.lsp.get_clients()[1]:request_sync('fimserver/stats', vim.empty_dict(), 5000).result.suggestions"
    ).get("ar", {})


def test_line_by_line(nvim, host):
    shows(nvim, host, "one(\n    two,\n)")
    for lines in (["x = one("], ["x = one(", "    two,"], ["x = one(", "    two,", ")"]):
        nvim.keys("<M-l>")
        becomes(nvim, *lines)
    assert nvim.ghost() is None


REMEMBER = """
local client = vim.lsp.get_clients({ bufnr = 0 })[1]
local ghost = require('vim.lsp._capability').all.inline_completion.active[vim.fn.bufnr()]
local items = vim.deepcopy(ghost.client_state[client.id].items)
function _G.answer_late()
  ghost:handler(nil, { items = items }, { client_id = client.id })
  return _G.ghost()
end"""


def test_an_answer_that_comes_after_its_lines_were_accepted_shows_the_rest(nvim, host):
    shows(nvim, host, "one(\n    two,\n)")
    nvim.lua(REMEMBER)
    for lines, rest in (
        (["x = one("], [0, 8, "\n    two,\n)"]),
        (["x = one(", "    two,"], [1, 8, "\n)"]),
        (["x = one(", "    two,", ")"], None),
    ):
        nvim.keys("<M-l>")
        becomes(nvim, *lines)
        assert nvim.lua("return answer_late()") == rest


def test_what_the_text_replaces_right_of_the_cursor_goes(nvim, host):
    host.says("a, b)")
    nvim.open("main.py", b"x = f()")
    nvim.keys("<Left>")
    ghost = nvim.settle()
    assert ghost
    nvim.keys("<Tab>")
    becomes(nvim, "x = f(a, b)")


def test_every_acceptance_is_one_undo_step(nvim, host):
    shows(nvim, host, "one + two")
    nvim.keys("<M-w>")
    becomes(nvim, "x = one")
    nvim.keys("<Tab>")
    becomes(nvim, "x = one + two")
    nvim.normal_mode()
    for lines in (["x = one"], ["x = "]):
        nvim.keys("u")
        becomes(nvim, *lines)


def test_candidates_go_round(nvim, host):
    host.engines.script = lambda _request, route: iter((route,))
    nvim.open("main.py")
    nvim.type("x = ")
    assert nvim.settle().text == "ar"
    nvim.keys(r"<M-\>")
    nvim.settle()
    seen = []
    for _ in range(3):
        seen.append(nvim.ghost().text)
        nvim.keys("<M-]>")
        nvim.wait("the other one", lambda: nvim.ghost().text != seen[-1])
    assert seen == ["ar", "dllm", "ar"]
    nvim.keys("<Tab>")
    becomes(nvim, "x = dllm")


def test_what_was_dismissed_does_not_come_back(nvim, host):
    ghost = shows(nvim, host, "hello")
    nvim.keys("<C-e>")
    nvim.wait("no ghost text", lambda: nvim.ghost() is None)
    nvim.keys(" <BS>")
    assert nvim.settle() is None
    assert "rejected" in nvim.explanation()
    assert ghost.text not in "\n".join(nvim.screen())


def test_deleting_what_was_typed_brings_the_ghost_text_back(nvim, host):
    ghost = shows(nvim, host, "hello")
    nvim.type("h")
    assert nvim.settle() == Ghost(ghost.row, ghost.column + 1, "ello")
    nvim.keys("<BS>")
    assert nvim.settle() == ghost


def test_every_buffer_has_its_own_ghost_text(nvim, host):
    shows(nvim, host, "first")
    first = nvim.command("echo bufnr()")
    host.says("second")
    nvim.open("other.py")
    nvim.type("y = ")
    assert nvim.settle().text == "second"
    nvim.normal_mode()
    nvim.command(f"buffer {first}")
    assert nvim.ghost() is None
    nvim.keys("A")
    assert nvim.settle().text == "first"


# ---------------------------------------------------------------- :Fim


def say(nvim, command):
    """What ``:Fim`` says, in one line."""
    nvim.normal_mode()
    (line,) = nvim.command(f"Fim {command}").splitlines()
    return line.removeprefix("fimserver: ")


def test_fim_alone_says_how_it_is(nvim, host):
    shows(nvim, host, "hello")
    assert say(nvim, "").startswith("fim ar ")
    assert "route auto" in say(nvim, "")


def test_words_that_fim_does_not_know_get_one_line(nvim, host):
    shows(nvim, host, "hello")
    assert say(nvim, "fly").startswith("no :Fim fly: disable, doctor, enable")
    assert say(nvim, "route home") == "no route home: auto, dllm or ar"


@pytest.mark.parametrize(
    ("typed", "choices"),
    [
        ("Fim ", "disable doctor enable explain get log pause restart resume route snooze stats toggle"),
        ("Fim res", "restart resume"),
        ("Fim route ", "ar auto dllm"),
        ("Fim stats ", ""),
    ],
)
def test_fim_completes_its_words(typed, choices, nvim):
    assert nvim.lua(f"return vim.fn.getcompletion({json.dumps(typed)}, 'cmdline')") == choices.split()


def test_switched_off_nothing_is_asked_and_on_again_it_is(nvim, host):
    shows(nvim, host, "hello")
    nvim.command("Fim disable")
    assert nvim.ghost() is None
    asked = len(host.engines.asked)
    nvim.type("q")
    assert nvim.settle() is None
    assert len(host.engines.asked) == asked
    assert nvim.status() == "off"
    nvim.command("Fim toggle")
    nvim.wait("on", lambda: nvim.status() != "off")
    host.says("uick")
    nvim.keys(" <BS>")
    assert nvim.settle().text == "uick"


def test_not_now_and_now(nvim, host):
    shows(nvim, host, "hello")
    nvim.command("Fim snooze")
    nvim.wait("a snooze", lambda: nvim.status() == "snoozed")
    assert nvim.ghost() is None
    nvim.type("q")
    assert nvim.settle() is None
    assert not any(
        request.prefix.endswith("q") for request in host.engines.asked
    )  # a prefetch may still come in
    host.says("uick")
    nvim.lua("require('fimserver').trigger()")
    assert nvim.settle().text == "uick"
    nvim.command("Fim snooze 0")
    nvim.wait("the end of it", lambda: nvim.status() != "snoozed")


def comes_when_asked_for(nvim, host):
    """Nothing comes by itself, and the suggestion comes when asked for."""
    host.says("one")
    nvim.open("main.py")
    nvim.type("x = ")
    assert nvim.settle() is None
    nvim.lua("require('fimserver').trigger()")
    assert nvim.wait("what was asked for", nvim.ghost, 10).text == "one"


def test_on_demand_nothing_comes_unless_it_is_asked_for(nvim, host):
    sent = "{ settings = { fimserver = { trigger = 'onDemand' } } }"
    nvim.open("main.py")
    nvim.lua(f"require('fimserver.server').client():notify('workspace/didChangeConfiguration', {sent})")
    comes_when_asked_for(nvim, host)


def test_a_pause_ends_with_what_is_asked_for(nvim, host):
    shows(nvim, host, "hello")
    nvim.command("Fim pause")
    nvim.wait("a pause", lambda: host.scheduler.paused_s > 0)
    nvim.normal_mode()
    comes_when_asked_for(nvim, host)
    assert host.scheduler.paused_s == 0


def test_on_battery_nothing_comes_unless_it_is_asked_for(host, user, tmp_path):
    with Neovim(tmp_path, [*on_battery(tmp_path), "--connect", host.url], user.env) as nvim:
        sent = "{ settings = { fimserver = { battery = 'off' } } }"
        nvim.open("main.py")
        nvim.lua(f"require('fimserver.server').client():notify('workspace/didChangeConfiguration', {sent})")
        comes_when_asked_for(nvim, host)


def test_a_server_that_is_gone_is_started_again(nvim, host):
    shows(nvim, host, "hello")
    nvim.server().kill()
    nvim.wait("it to be known", lambda: nvim.status() == "no server")
    nvim.command("Fim restart")
    nvim.wait_initialized()
    host.says("again")
    nvim.normal_mode()
    nvim.keys("A ")
    assert nvim.settle().text == "again"


def test_statistics_have_a_window_that_q_closes(nvim, host):
    shows(nvim, host, "hello")
    nvim.normal_mode()
    nvim.command("Fim stats")
    nvim.wait("the window", lambda: "".join(nvim.lines()).strip())
    nvim.keys("q")
    nvim.wait("the file", lambda: nvim.lines() == ["x = "])


def test_the_log_is_shown(nvim, host):
    shows(nvim, host, "hello")
    nvim.normal_mode()
    nvim.command("Fim log")
    assert nvim.command("echo expand('%:t')").strip() == "lsp.log"
    nvim.wait(
        "a word on the host's log", lambda: "the host keeps its log where it runs" in nvim.messages(), 10
    )


# ---------------------------------------------------------------- what it says of itself


def test_changes_of_state_are_user_events(nvim, host):
    nvim.lua("seen = {}")
    nvim.command("autocmd User FimserverStatus lua table.insert(seen, require('fimserver').state().state)")
    shows(nvim, host, "hello")
    nvim.command("Fim disable")
    nvim.wait("the event", lambda: nvim.lua("return seen[#seen]") == "off")
    assert "ready" in nvim.lua("return seen")


def test_health_of_what_is_well(nvim, host):
    shows(nvim, host, "hello")
    report = nvim.health()
    for fact in (
        "Neovim 0.",
        f"version {__version__}",
        "attached to main.py",
        "fake answers by route ar",
        "<Tab>",
    ):
        assert fact in report
    assert "WARNING" not in report
    assert "ERROR" not in report


def test_health_names_a_setting_that_has_no_effect(nvim, host):
    shows(nvim, host, "hello")
    sent = "{ settings = { fimserver = { modle = 'ar', maxTokens = -1 } } }"
    nvim.lua(f"require('fimserver.server').client():notify('workspace/didChangeConfiguration', {sent})")
    report = nvim.health()
    assert "did you mean model?" in report
    assert "maxTokens" in report


def test_health_offers_the_coder_that_fits_with_its_size_and_fetches_nothing(user, tmp_path):
    with Neovim(
        tmp_path, [*CLI, "--model", "ar"], user.env | {"XDG_DATA_HOME": str(tmp_path / "data")}
    ) as nvim:
        nvim.open("main.py")
        report = nvim.health()
    best = next(
        item for item in best_models(Settings(models_dir=tmp_path), this_machine()) if item.route == "ar"
    )
    assert (
        best.here
        or f"{best.name}, {best.as_json()['size']} to download; run :Fim get, or {best.command}" in report
    )
    assert not list(tmp_path.rglob("*.part"))


def test_getting_a_model_asks_first(user, tmp_path):
    with Neovim(
        tmp_path, [*CLI, "--model", "ar"], user.env | {"XDG_DATA_HOME": str(tmp_path / "data")}
    ) as nvim:
        nvim.open("main.py")
        nvim.lua("asked = {}; vim.fn.confirm = function(text) table.insert(asked, text); return 2 end")
        nvim.command("Fim get")
        asked = nvim.lua("return asked")
    assert not asked or asked[0].startswith("Download ")
    assert not list(tmp_path.rglob("*.part"))


def test_health_of_a_missing_program_says_what_to_do(user, tmp_path):
    with Neovim(tmp_path, ["/nowhere/fimserver"], user.env) as nvim:
        nvim.open_without_server("main.py")
        report = nvim.health()
    assert "ERROR no program /nowhere/fimserver" in report
    assert "make try" in report


def test_health_of_a_host_that_is_away(user, tmp_path):
    with Neovim(tmp_path, [*CLI, "--connect", "http://127.0.0.1:1"], user.env) as nvim:
        nvim.open("main.py")
        started = time.monotonic()
        report = nvim.health()
    assert time.monotonic() - started < 60
    assert "the model is not ready, no_host" in report
    assert ":Fim restart" in report


# ---------------------------------------------------------------- how it is found


def test_on_the_runtimepath_alone_it_works(user, host, tmp_path):
    """With a program of that name in PATH and nothing configured."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/fimserver"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m fimserver.cli "$@"\n')
    program.chmod(0o755)
    path = {"PATH": f"{program.parent}:/usr/bin:/bin", "FIMSERVER_CONNECT": host.url}
    host.says("hello")
    with Neovim(tmp_path, [], user.env | path) as nvim:
        nvim.open("main.py")
        nvim.type("x = ")
        assert nvim.settle().text == "hello"
        nvim.normal_mode()
        nvim.command("help fimserver")
        assert nvim.command("echo expand('%:t')").strip() == "fimserver.txt"


@pytest.mark.parametrize("command", ["~/fimserver", ["~/fimserver", "--model", "ar"]])
def test_a_program_of_the_home_folder_is_found(command, nvim):
    nvim.lua(f"vim.g.fimserver_command = vim.json.decode([==[{json.dumps(command)}]==])")
    first = nvim.lua("return require('fimserver.server').default_cmd()")[0]
    assert first == nvim.lua("return vim.fs.normalize('~/fimserver')")


def test_the_plugin_is_thin():
    sources = [line.strip() for path in PLUGIN.rglob("*.lua") for line in path.read_text().splitlines()]
    assert len([line for line in sources if line and not line.startswith("--")]) <= 490


def test_the_tags_of_the_help_are_those_of_its_text(nvim, tmp_path):
    shutil.copy(PLUGIN / "doc/fimserver.txt", tmp_path)
    nvim.command(f"helptags {tmp_path}")
    assert (tmp_path / "tags").read_text() == (PLUGIN / "doc/tags").read_text(), (
        "run :helptags editors/nvim/doc"
    )


def test_what_is_no_file_gets_no_server(nvim, host):
    shows(nvim, host, "hello")
    nvim.normal_mode()
    for command in ("enew", "help", "terminal true", "edit term://true"):
        nvim.command(f"silent! {command}")
        assert nvim.lua("return #vim.lsp.get_clients({ bufnr = 0 })") == 0
