"""Tests of the real coder are skipped where its file is missing, and fail where CI requires it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEST = """
import pytest
from tests.coder import needs_coder

@needs_coder
def test_the_coder():
    pass

@pytest.mark.skip(reason="another reason")
def test_another():
    pass
"""


@pytest.mark.parametrize(
    ("required", "present", "code", "counted"),
    [
        ("", False, 0, "2 skipped"),
        ("1", False, 1, "1 skipped, 1 error"),
        ("", True, 0, "1 passed, 1 skipped"),
        ("1", True, 0, "1 passed, 1 skipped"),
    ],
)
def test_a_skip_for_want_of_the_coder(required, present, code, counted, tmp_path):
    models = tmp_path / "models" / "qwen2.5-coder-0.5b-instruct"
    models.mkdir(parents=True)
    if present:
        (models / "some.gguf").touch()
    (tmp_path / "test_it.py").write_text(TEST, "utf-8")
    names = {"FIMSERVER_MODELS_DIR": str(models.parent), "PYTHONPATH": str(ROOT), "REQUIRE_CODER": required}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.coder",
        "-p",
        "no:cacheprovider",
        "test_it.py",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | names, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout
    assert counted in done.stdout


def test_ci_requires_the_coder():
    assert "export REQUIRE_CODER=1" in (ROOT / ".ci" / "run").read_text("utf-8")
