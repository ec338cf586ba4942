"""The real coder of tests: the path of its file, and the rule that CI must have it."""

import os
from pathlib import Path

import platformdirs
import pytest

NAME = "qwen2.5-coder-0.5b-instruct"
MODELS = Path(os.environ.get("FIMSERVER_MODELS_DIR") or platformdirs.user_data_path("fimserver") / "models")
FILES = sorted((MODELS / NAME).glob("*.gguf"))
MISSING = f"{NAME} is not here: fimserver models get {NAME}"
REQUIRED = bool(os.environ.get("REQUIRE_CODER"))
needs_coder = pytest.mark.skipif(not FILES, reason=MISSING)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport():
    """Make a failure of a test that is skipped for want of the coder, where ``REQUIRE_CODER`` is set."""
    outcome = yield
    report = outcome.get_result()
    if REQUIRED and report.skipped and MISSING in str(report.longrepr):
        report.outcome = "failed"
        report.longrepr = f"skipped, which REQUIRE_CODER forbids: {MISSING}"
