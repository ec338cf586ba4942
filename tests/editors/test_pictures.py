"""Pictures of both editors, and the text that they must show.

FIMSERVER_SHOTS names a folder that keeps them, as ``make pictures`` does for the READMEs.
"""

import os
from pathlib import Path

import pytest

from tests.editors.places import SHAPES, names, until

# Read before any fixture clears the environment.
SHOTS = os.environ.get("FIMSERVER_SHOTS", "")
MODEL = os.environ.get("EDITOR_TEST_CODER") or "nano"
PLACES = (
    (SHAPES, "\nclass Cube:\n"),
    (SHAPES, "\nclass Circle:\n    def __init__(self, "),
    (SHAPES, "\n    def scale(self, factor):\n        self.width = "),
)


@pytest.fixture
def shoot(editor, tmp_path):
    """Write a picture of the window. It is of something: one colour would be a small file."""

    def shoot(what):
        path = Path(SHOTS or tmp_path) / f"{editor.name.lower().replace(' ', '')}-{what}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        editor.shoot(path)
        assert path.stat().st_size > 20_000

    return shoot


def test_ghost_text(editor, shoot):
    until(editor, lambda text: "\n" in text, PLACES)
    shoot("ghost")


def test_why_there_is_none(editor, shoot):
    editor.open(next(names).replace(".py", ".env"), b"API_URL=http://localhost\n\n")
    editor.type("API_TOKEN=")
    assert editor.settle() is None
    assert "secrets" in editor.explanation()
    shoot("explain")


def test_health(editor, shoot):
    until(editor, bool)
    assert MODEL in editor.health()
    shoot("health")


@pytest.mark.vscode
def test_menu(desks, tmp_path):
    with desks("vscode")(tmp_path) as editor:
        until(editor, lambda text: "\n" in text, PLACES)
        assert editor.menu().count() == 11
        editor.shoot(Path(SHOTS or tmp_path) / "vscode-menu.png")
        editor.press("Escape")


@pytest.mark.vscode
def test_walkthrough(desks, tmp_path):
    with desks("vscode")(tmp_path) as editor:
        until(editor, bool)
        editor.command("FIM: First Steps")
        editor.wait("its steps", lambda: editor.page.get_by_text("See a first completion").count())
        editor.shoot(Path(SHOTS or tmp_path) / "vscode-walkthrough.png")
