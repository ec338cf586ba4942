"""`make try`: its files exist, and if the coder cannot be downloaded it says why and nano completes them."""

import json
import re
from pathlib import Path

import huggingface_hub
from click.testing import CliRunner

from fimserver.cards import get_card
from fimserver.cli import main
from fimserver.commands.cursor import read_place

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
CODER = re.search(r"^CODER := (\S+)$", MAKEFILE, re.MULTILINE)[1]
PLACES = re.search(r"^PLACES := (.+)$", MAKEFILE, re.MULTILINE)[1].split()


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


def test_it_gets_a_coder_that_is_open_source():
    assert get_card(CODER).osi
    assert re.search(r"if \S+ models get \$\(CODER\); .*; \\\n\telse echo ", MAKEFILE, re.DOTALL)


def test_it_shows_the_canvas_of_the_coder_and_of_nano():
    shown = re.findall(r"complete (\S+) --model dllm --dllm-card (\S+) --show-steps", MAKEFILE)
    assert {name for _, name in shown} == {"nano", "$(CODER)"}
    assert {place for place, _ in shown} <= set(PLACES)
    assert set(get_card(CODER).routes) == {"ar", "dllm"}


def test_its_three_places_are_holes_in_the_examples():
    assert len(PLACES) == 3
    for spec in PLACES:
        place = read_place(str(ROOT / spec))
        assert place.prefix
        assert place.suffix.startswith("\n")


def test_without_network_it_says_so_and_nano_completes_them(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple/")
    got = run("models", "get", CODER)
    assert got.exit_code == 1
    assert "HF_HUB_OFFLINE is set" in got.stderr
    assert "127.0.0.1:1" in got.stderr
    done = run("complete", "--model", "ar", "--json", "--max-tokens", 16, *(ROOT / spec for spec in PLACES))
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["model"] for answer in answers] == ["nano"] * 3
    assert all(answer["total_ms"] > 0 for answer in answers)
