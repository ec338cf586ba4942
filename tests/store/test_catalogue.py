"""`fimserver models`: the listing in 80 columns, through a pipe, and as JSON."""

import json

import pytest
from click.testing import CliRunner

from fimserver.cards import get_card, gguf_files, read_cards
from fimserver.cli import main
from fimserver.keystrokes import keep_ms
from fimserver.machine import Machine
from fimserver.settings import Settings
from fimserver.store import catalogue, listing
from fimserver.store.discovery import Found

CODER = "qwen2.5-coder-0.5b-instruct"


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


def rows(settings, ram_gib=16.0, gpu_gib=0.0, found=()):
    return {
        entry.name: entry for entry in catalogue.entries(settings, Machine(gpu_gib, ram_gib), list(found))
    }


@pytest.fixture
def settings(tmp_path):
    return Settings(models_dir=tmp_path)


@pytest.fixture
def coder(tmp_path):
    folder = tmp_path / CODER
    folder.mkdir()
    (folder / gguf_files(get_card(CODER))[0]).write_bytes(bytes(5000))
    return folder


def test_every_card_is_listed_with_size_licence_and_routes(settings):
    listed = rows(settings)
    assert set(listed) == set(read_cards())
    nano = listed["nano"]
    assert (nano.state, nano.weights, nano.default_of, nano.fits) == ("here", "bf16", ("dllm", "ar"), True)
    absent = listed[CODER]
    assert (absent.state, absent.size_bytes, absent.weights, absent.licence) == (
        "absent",
        491_400_064,
        "Q4_K_M",
        "Apache-2.0",
    )


def test_a_coder_that_is_here_is_the_default_with_the_speed_measured_here(settings, coder):
    keep_ms("cpu", CODER, 187)
    entry = rows(settings)[CODER]
    assert (entry.state, entry.default_of, entry.keystroke_ms, entry.where) == (
        "here",
        ("dllm", "ar"),
        187,
        str(coder),
    )
    assert "187 ms a keystroke, measured here" in listing.text([entry], {}, is_terminal=False)


def test_whether_it_fits_depends_on_the_machine(settings):
    assert rows(settings, ram_gib=8)[CODER].fits
    assert not rows(settings, ram_gib=2)[CODER].fits
    assert rows(settings, gpu_gib=24)["qwen2.5-coder-7b"].fits
    assert not rows(settings, gpu_gib=10)["qwen2.5-coder-7b"].fits


def test_links_lead_to_their_place(settings, tmp_path):
    name = gguf_files(get_card(CODER))[0]
    other = tmp_path / "ollama" / "blob"
    other.parent.mkdir()
    other.write_bytes(b"GGUF")
    (tmp_path / CODER).mkdir()
    (tmp_path / CODER / name).symlink_to(other)
    assert (rows(settings)[CODER].state, rows(settings)[CODER].where) == ("elsewhere", str(other))
    other.unlink()
    assert rows(settings)[CODER].state == "absent"


def test_what_other_programs_have_is_listed_with_its_path(settings, tmp_path):
    card = get_card(CODER)
    known, unknown, chat = (
        tmp_path / name for name in (gguf_files(card)[0], "Qwen2.5-Coder-3B-Q8_0.gguf", "chat.gguf")
    )
    for path in (known, unknown, chat):
        path.write_bytes(b"GGUF")
    found = [
        Found("Ollama", "q:0.5b", known, 4, card.files[known.name]),
        Found("LM Studio", f"a/b/{unknown.name}", unknown, 4),
        Found("LM Studio", "a/b/chat.gguf", chat, 4),
    ]
    listed = rows(settings, found=found)
    assert listed[CODER].state == "found"
    assert str(known) in listed[CODER].where
    assert listed[f"a/b/{unknown.name}"].weights == "Q8_0"
    assert "a/b/chat.gguf" not in listed


def test_names_are_whole_in_80_columns_and_through_a_pipe():
    result = run("models")
    assert result.exit_code == 0
    for name in read_cards():
        assert any(line.split()[:1] == [name] for line in result.stdout.splitlines())
    assert "\x1b" not in result.stdout
    assert max(len(line) for line in result.stdout.splitlines() if "/" not in line) <= 80


def test_json_has_every_field():
    listed = {entry["name"]: entry for entry in json.loads(run("models", "--json").stdout)}
    assert set(listed) >= set(read_cards())
    assert set(listed["nano"]) == set(catalogue.CatalogueEntry.__dataclass_fields__)


def test_caches_are_shown_and_cleared(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "fimserver" / catalogue.CACHES[0]
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(3000))
    assert f"{folder}: 3.0 kB; `fimserver models rm caches`" in run("models").stdout
    assert "removed caches: 3.0 kB free" in run("models", "rm", "caches").stdout
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["models", "get", "nothing"], 2, "no model card named 'nothing'"),
        (["models", "get", "nano"], 2, "shipped with fimserver"),
        (["models", "rm", "nano"], 2, "shipped with fimserver"),
        (["models", "add", "nowhere.gguf"], 2, "does not exist"),
        (["models", "get", CODER, "--from", "here.gguf"], 2, "--from here.gguf: give an http"),
    ],
)
def test_input_that_cannot_be_used_is_one_line_and_code_2(arguments, code, complaint):
    result = run(*arguments)
    assert result.exit_code == code
    assert complaint in result.stderr
    assert result.stderr.count("\n") == 1


def test_getting_a_model_that_is_present_says_one_sentence(tmp_path, coder):
    result = run("models", "get", CODER, "--models-dir", tmp_path)
    assert result.exit_code == 0
    assert result.stdout == f"{CODER} is ready in {coder}\n"
    assert result.stderr == ""


def test_the_folder_may_be_given_before_and_behind_the_verb(tmp_path, coder):
    assert f"removed {CODER}" in run("models", "rm", CODER, "--models-dir", tmp_path).stdout
    coder.mkdir()
    (coder / gguf_files(get_card(CODER))[0]).write_bytes(bytes(5000))
    assert f"removed {CODER}" in run("models", "--models-dir", tmp_path, "rm", CODER).stdout
