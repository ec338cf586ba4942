"""The whole product in a real Neovim: keys in, ghost text and buffer out.

Nothing here depends on what the model says: where it says nothing, the next place is tried.
"""

import os
import shlex
import sys
import tempfile
from pathlib import Path

import pytest

from tests.editors.editor import Ghost
from tests.editors.neovim import Neovim, processes, why_not

SERVER = shlex.split(os.environ.get("EDITOR_TEST_SERVER", "")) or [sys.executable, "-m", "fimserver.cli"]
REASON = why_not()
pytestmark = [pytest.mark.neovim, pytest.mark.skipif(bool(REASON), reason=REASON)]

FIRST_GHOST_S = 90.0  # the host imports torch and loads the model
PLACES = (  # what the file holds, and what is typed at its end
    (b"", "def add(a, b):\n    return "),
    (b"def add(a, b):\n    return a + b\n", "\n\ndef mul(a, b):\n    return "),
    (b"import os\n\n\ndef walk(folder):\n", "\n    for name in "),
    (b"class Point:\n    def __init__(self, x, y):\n        self.x = x\n", "\n        self.y = "),
    (b"items = [1, 2, 3]\nfor item in items:\n", "\n    print("),
)


@pytest.fixture(scope="module")
def runtime():
    """A short path, as sockets want it. One model host serves all the tests, as it does all windows of a person."""
    with tempfile.TemporaryDirectory(prefix="fim", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
        for process in processes(Path(folder)):
            process.kill()


@pytest.fixture
def nvim(runtime, tmp_path):
    folders = {f"XDG_{name}_HOME": str(runtime / name.lower()) for name in ("CACHE", "CONFIG", "DATA")}
    env = folders | {"XDG_RUNTIME_DIR": str(runtime), "XDG_STATE_HOME": str(tmp_path / "state")}
    project = tmp_path / "project"
    project.mkdir()
    with Neovim(project, SERVER, env | {"FIMSERVER_MODELS_DIR": str(runtime / "models")}) as nvim:
        yield nvim
        server = nvim.server()
        assert nvim.messages() == ""
        assert '"inline_completion"' not in nvim.log(), "the server answered with an error"
    nvim.wait("the server to leave with its editor", lambda: server not in processes(runtime), 10)


def type_until_ghost(nvim: Neovim, *, places=PLACES, name="place", letters=1) -> Ghost:
    """Type at one place after the other until one has ghost text whose first line is long enough."""

    def look():
        for number, (content, typed) in enumerate(places):
            nvim.open(f"{name}{number}.py", content)
            nvim.type(typed)
            ghost = nvim.settle()
            if ghost and len(ghost.text.split("\n")[0]) >= letters:
                return ghost
        return None

    return nvim.wait("ghost text at any place", look, FIRST_GHOST_S)


def accept(nvim: Neovim, ghost: Ghost) -> None:
    wanted = ghost.within(nvim.lines())
    nvim.keys("<Tab>")
    nvim.wait(f"{wanted} after Tab", lambda: nvim.lines() == wanted, 5)


def test_ghost_text_appears_behind_the_cursor_and_tab_makes_it_text(nvim):
    ghost = type_until_ghost(nvim)
    assert nvim.screen()[ghost.row].endswith(nvim.lines()[ghost.row] + ghost.text.split("\n")[0].rstrip())
    assert ghost.column == len(nvim.lines()[ghost.row])
    accept(nvim, ghost)
    assert nvim.before_cursor() == "\n".join(nvim.lines())


def test_typing_the_ghost_text_leaves_its_rest(nvim):
    ghost = type_until_ghost(nvim, letters=2)
    nvim.type(ghost.text[0])
    assert nvim.ghost() == Ghost(ghost.row, ghost.column + 1, ghost.text[1:])
    assert nvim.settle() == Ghost(ghost.row, ghost.column + 1, ghost.text[1:])


def test_ghost_text_that_was_typed_into_is_accepted_once_the_server_knows(nvim):
    ghost = type_until_ghost(nvim, letters=2)
    wanted = ghost.within(nvim.lines())
    nvim.type(ghost.text[0])
    accept(nvim, nvim.settle())
    assert nvim.lines() == wanted


def test_deleting_what_was_typed_brings_the_ghost_text_back(nvim):
    ghost = type_until_ghost(nvim, letters=2)
    nvim.type(ghost.text[0])
    nvim.settle()
    nvim.keys("<BS>")
    assert nvim.settle() == ghost


def test_every_buffer_has_its_own_ghost_text(nvim):
    type_until_ghost(nvim, name="first")
    first = nvim.command("echo bufnr()")
    ghost = type_until_ghost(nvim, name="second")
    accept(nvim, ghost)
    nvim.normal_mode()
    nvim.command(f"buffer {first}")
    assert nvim.ghost() is None
    nvim.keys("A")
    nvim.wait("insert mode", lambda: nvim.mode() == "i")
    assert nvim.settle()


def test_nobody_notices_that_the_model_host_was_killed(nvim, runtime):
    type_until_ghost(nvim)
    server = nvim.server()
    killed = processes(runtime, "host")
    assert killed
    for host in killed:
        host.kill()
    nvim.type("x")
    nvim.settle()
    assert nvim.mode() == "i"
    type_until_ghost(nvim, name="later")
    assert not {host.pid for host in killed} & {host.pid for host in processes(runtime, "host")}
    assert nvim.server() == server


def test_in_a_file_with_crlf_and_emoji_accepted_text_lands_at_the_cursor(nvim):
    smile = "\N{GRINNING FACE}"
    places = [(f"# {smile} é\n".encode() + content, f"{typed}'{smile}' + ") for content, typed in PLACES]
    places += [(f"# {smile} é\n".encode() + content, f"  # {smile}{typed}") for content, typed in PLACES]
    crlf = [(content.replace(b"\n", b"\r\n"), typed) for content, typed in places]
    ghost = type_until_ghost(nvim, places=crlf)
    assert nvim.command("set fileformat?").strip() == "fileformat=dos"
    accept(nvim, ghost)
    assert "\r" not in "".join(nvim.lines())
    nvim.command("silent write")
    written = Path(nvim.command("echo expand('%:p')")).read_bytes()
    assert written.decode() == "".join(f"{line}\r\n" for line in nvim.lines())


def test_undo_takes_back_what_was_accepted_and_no_more(nvim):
    type_until_ghost(nvim)
    nvim.keys("<Esc>a")  # the typed text is a change of its own
    before, ghost = nvim.lines(), nvim.settle()
    assert ghost
    accept(nvim, ghost)
    nvim.normal_mode()
    nvim.command("silent undo")
    assert nvim.lines() == before


def test_a_file_with_secrets_stays_silent(nvim):
    type_until_ghost(nvim)
    nvim.open(".env", b"API_URL=http://localhost\n")
    nvim.type("\nAPI_TOKEN=")
    assert nvim.settle() is None
