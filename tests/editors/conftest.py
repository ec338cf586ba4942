"""Windows of real editors: a test with ``window`` or ``editor`` runs in each of them."""

import os
import shlex
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

import platformdirs
import pytest

from fimserver.settings import Settings
from tests.browser.chromium import chromium
from tests.editors import neovim, vscode

CODER = os.environ.get("EDITOR_TEST_CODER", "")  # the name of a card whose files are here; without it, nano
MODELS = Settings().models_dir
SERVER = shlex.split(os.environ.get("EDITOR_TEST_SERVER", "")) or [sys.executable, "-m", "fimserver.cli"]


@contextmanager
def neovim_desk(runtime):
    env = folders(runtime)

    @contextmanager
    def window(folder, command=SERVER):
        with neovim.Neovim(folder, command, env | {"XDG_STATE_HOME": str(folder / "state")}) as window:
            yield window

    yield window


@contextmanager
def vscode_desk(runtime):
    """One code-server and one Chromium for all windows, and the first window again for each test: it takes 8 s to open."""
    with vscode.Server(runtime / "vscode", SERVER, folders(runtime), {}) as server, chromium() as browser:
        yield vscode.Desk(server, browser).window


DESKS = {"neovim": (neovim_desk, neovim.why_not), "vscode": (vscode_desk, vscode.why_not)}


def folders(runtime):
    """A user of one's own, as far as fimserver can see."""
    kinds = {f"XDG_{kind}_HOME": str(runtime / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA", "STATE")}
    return (
        kinds
        | coder(runtime)
        | {"XDG_RUNTIME_DIR": str(runtime), "FIMSERVER_MODELS_DIR": str(runtime / "models")}
    )


def coder(runtime):
    """Settings of a host that serves the coder of ``EDITOR_TEST_CODER``, whose files are linked into the folders."""
    if not CODER:
        return {}
    kept = platformdirs.user_cache_path("fimserver") / "int8"
    for link, target in (
        (runtime / "models" / CODER, MODELS / CODER),
        (runtime / "cache/fimserver/int8", kept),
    ):
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(target)
    return {"FIMSERVER_AR_CARD": CODER, "FIMSERVER_MODEL": "ar"}


@pytest.fixture(scope="session")
def runtime():
    """A short path, as sockets want it. One model host serves all the tests, as it does all windows of a person."""
    with tempfile.TemporaryDirectory(prefix="fim", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
        for process in neovim.processes(Path(folder)):
            process.kill()


@pytest.fixture(scope="session")
def desks(runtime):
    """What opens windows of an editor, by its name. An editor is started when it is first wanted."""
    started = {}
    with ExitStack() as stack:

        def desk(name):
            make, why_not = DESKS[name]
            if reason := why_not():
                pytest.skip(reason)
            if name not in started:
                started[name] = stack.enter_context(make(runtime))
            return started[name]

        yield desk


@pytest.fixture(params=[pytest.param(name, marks=getattr(pytest.mark, name)) for name in DESKS])
def window(request, desks):
    """What opens a window of the editor on a folder."""
    return desks(request.param)


@pytest.fixture
def editor(window, tmp_path):
    with window(tmp_path) as editor:
        yield editor
        assert editor.complaints() == []
