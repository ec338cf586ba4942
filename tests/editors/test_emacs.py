"""The language server in a real Emacs without a screen: lsp-mode shows ghost text and accepts it, eglot has a menu.

Nothing here depends on what the model says: where it says nothing, the next place is tried.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.editors.neovim import processes

HERE = Path(__file__).parent
SERVER = shlex.split(os.environ.get("EDITOR_TEST_SERVER", "")) or [sys.executable, "-m", "fimserver.cli"]
PROGRAM = Path(os.environ.get("EMACS", "") or Path.home() / ".cache/fimserver/emacs/emacs")
PATIENCE_S = 200.0  # the host imports torch and loads the model
PLACES = (
    "items = [1, 2, 3]\nfor item in items:\n    print(",
    "import os\n\n\ndef walk(folder):\n    for name in ",
    "def add(a, b):\n    return a + b\n\n\ndef mul(a, b):\n    return ",
    "class Point:\n    def __init__(self, x, y):\n        self.x = x\n        self.y = y\n\n    def __repr__(self):\n        return ",
)


def why_not() -> str:
    """Why no test can run here, or an empty string."""
    install = "run tests/editors/install_emacs.sh, or name an Emacs with lsp-mode 10 in EMACS"
    if not os.access(PROGRAM, os.X_OK):
        return f"no {PROGRAM}: {install}"
    ask = [
        str(PROGRAM),
        "--batch",
        "-l",
        "lsp-inline-completion",
        "--eval",
        "(princ (fboundp 'lsp-inline-completion-mode))",
    ]
    answer = subprocess.run(ask, capture_output=True, text=True, timeout=60, check=False)
    return "" if answer.stdout == "t" else f"{PROGRAM} has no lsp-inline-completion-mode: {install}"


REASON = why_not()
pytestmark = [pytest.mark.emacs, pytest.mark.skipif(bool(REASON), reason=REASON)]


@pytest.fixture
def emacs(tmp_path):
    """Runs a file of Lisp in a folder of its own, and reads the line of JSON that it prints."""
    with tempfile.TemporaryDirectory(prefix="fim", ignore_cleanup_errors=True) as folder:
        runtime = Path(folder)
        env = {
            f"XDG_{name}_HOME": str(runtime / name.lower()) for name in ("CACHE", "CONFIG", "DATA", "STATE")
        }
        env |= {"HOME": folder, "XDG_RUNTIME_DIR": folder, "FIMSERVER_MODELS_DIR": str(runtime / "models")}
        env |= {"SERVER": json.dumps(SERVER), "PLACES": json.dumps(PLACES)}

        def run(script):
            ran = subprocess.run(
                [str(PROGRAM), "--batch", "-l", str(HERE / script)],
                cwd=tmp_path,
                env={**os.environ, **env},
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                check=False,
            )
            assert ran.returncode == 0, ran.stderr
            return json.loads(
                next(line for line in ran.stdout.splitlines() if line.startswith("{"))
            ), ran.stderr

        yield run
        for process in processes(runtime):
            process.kill()


def test_lsp_mode_shows_ghost_text_and_accepts_it(emacs):
    seen, messages = emacs("lsp_mode.el")
    assert seen["mode"] is True  # which it turns on by itself
    assert seen["ghost"] in seen["drawn"]
    assert seen["after"] == seen["before"] + seen["ghost"]
    (counts,) = seen["stats"]["suggestions"].values()
    assert (counts["accepted"], counts["accepted_chars"]) == (1, len(seen["ghost"]))
    assert "Could not fetch" not in messages


def test_eglot_connects_and_has_a_menu(emacs):
    seen, messages = emacs("eglot.el")
    assert seen["managed"] is True
    assert seen["menu"]
    assert "Server exited with status 0" in messages
