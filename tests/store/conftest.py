"""A card with one small file as its GGUF, and a ``Watch`` that records."""

import hashlib
import random

import pytest

from fimserver.cards import IndexParts
from tests.tiny import make_card

PART_BYTES = 100_000
DATA = random.Random(1).randbytes(250_000)
NAME = "tiny.gguf"


class Seen:
    """A ``Watch`` that records lines and positions."""

    def __init__(self):
        self.lines, self.places, self.total = [], [], None

    def say(self, line):
        self.lines.append(line)

    def start(self, total_bytes):
        self.total = total_bytes

    def at(self, done_bytes):
        self.places.append(done_bytes)


@pytest.fixture
def seen():
    return Seen()


@pytest.fixture
def card():
    parts = IndexParts(packages="tiny-part{number}", version="1.0", count=3, part_bytes=PART_BYTES)
    digest = hashlib.sha256(DATA).hexdigest()
    return make_card("qwen2", hub=None, files={NAME: digest}, download_bytes=len(DATA), index=parts)


@pytest.fixture
def parts():
    """What the index has of the file."""
    return {f"tiny-part{n + 1}": (n + 1, DATA[n * PART_BYTES : (n + 1) * PART_BYTES]) for n in range(3)}


@pytest.fixture(autouse=True)
def _no_other_programs(tmp_path, monkeypatch):
    """Isolate the tests from stores of other programs and from pip's configuration."""
    for name in (
        "HF_HOME",
        "HF_HUB_CACHE",
        "OLLAMA_MODELS",
        "LLAMA_CACHE",
        "XDG_CACHE_HOME",
        "XDG_CONFIG_HOME",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
