"""`fimserver models best`: the best model of each route for this machine, and how to get it."""

import json

import pytest
from click.testing import CliRunner

from fimserver.cards import get_card, gguf_files
from fimserver.cli import main
from fimserver.machine import Machine
from fimserver.settings import Settings
from fimserver.store.advice import best_models

CODER = "qwen2.5-coder-0.5b-instruct"


@pytest.fixture
def settings(tmp_path):
    return Settings(models_dir=tmp_path)


def test_what_is_not_here_is_named_with_its_size_and_the_command(settings):
    ar = {item.route: item for item in best_models(settings, Machine(0.0, 16.0))}["ar"]
    assert (ar.name, ar.here, ar.command) == (CODER, False, f"fimserver models get {CODER}")
    assert "491 MB" in ar.text()
    assert "16 GiB" in ar.why
    assert ar.as_json()["size"] == "491 MB"


def test_what_is_here_needs_no_command(settings, tmp_path):
    (tmp_path / CODER).mkdir()
    (tmp_path / CODER / gguf_files(get_card(CODER))[0]).write_bytes(b"")
    ar = {item.route: item for item in best_models(settings, Machine(0.0, 16.0))}["ar"]
    assert (ar.here, ar.command) == (True, "")
    assert "models get" not in ar.text()


def test_a_gpu_gets_a_model_for_each_route(settings):
    names = {item.route: item.name for item in best_models(settings, Machine(24.0, 64.0))}
    assert names == {"ar": "qwen2.5-coder-7b", "dllm": "dreamon-7b"}


def test_a_small_machine_keeps_nano_and_hears_why(settings):
    ar = {item.route: item for item in best_models(settings, Machine(0.0, 2.0))}["ar"]
    assert (ar.name, ar.here) == ("nano", True)
    assert "needs 4 GiB of free memory, here are 2.0" in ar.why


def test_the_command_says_it_in_json(tmp_path):
    result = CliRunner().invoke(
        main, ["models", "best", "--json", "--models-dir", str(tmp_path)], catch_exceptions=False
    )
    items = json.loads(result.stdout)
    assert {item["route"] for item in items} == {"ar", "dllm"}
    assert {"name", "here", "size", "why", "command"} <= set(items[0])
