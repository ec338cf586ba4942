"""``fimserver doctor --canvas``: the cached canvas against the exact one, on files of the user."""

import json
import re

import pytest
from click.testing import CliRunner

from fimserver.cli import main
from fimserver.commands.doctor_canvas import FOLDER_PLACES, PLACES, read_places, spec_of
from fimserver.engine.denoising.refresh import read_cache
from fimserver.errors import InputError
from tests.engine.test_autoregressive import CODE
from tests.tiny import make_checkpoint

CARD = """
name = "tiny-dream"
licence = "MIT"
osi = true
parameters_m = 1.0
architecture = "Dream"
loads_as = "qwen2"
prompt_tokens = 128

[canvas]
attention = "full"
mask = "<|mask|>"
shift = true
start = "<bos>"
after_suffix = "<eos>"
length = "fixed"
initial_tokens = 8
max_tokens = 12
schedule = "entropy"
cache = "checked"
"""


@pytest.fixture(scope="module")
def dream(tmp_path_factory):
    """Options that make a tiny random model the dllm route."""
    folder = tmp_path_factory.mktemp("dream")
    make_checkpoint(folder / "models" / "tiny-dream", "Dream", seed=5)
    card = folder / "tiny-dream.toml"
    card.write_text(CARD)
    return ("--dllm-card", card, "--models-dir", folder / "models")


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "code.py"
    path.write_text(CODE * 2)
    return path


def doctor(*arguments):
    result = CliRunner().invoke(main, ["doctor", *map(str, arguments)], catch_exceptions=False)
    return result, {f["name"]: f for f in json.loads(result.stdout)} if "--json" in arguments else {}


def numbers(text):
    return [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", text)]


def test_it_says_how_far_the_cache_is_from_exact_and_what_it_saves(dream, source):
    result, found = doctor("--canvas", source, "--json", *dream)
    assert list(found) == ["canvas", "equal", "drift", "veto", "rows", "time"]
    assert "tiny-dream: checked:16,share=0.5" in found["canvas"]["value"]
    share, tokens, whole, places = numbers(found["equal"]["value"])
    assert 0 <= share <= 100
    assert places == len(read_places(source)) >= 3
    assert tokens == 8 * places  # slots of the card
    assert whole <= places
    cached, exact, ratio = numbers(found["rows"]["value"])[:3]
    assert ratio == pytest.approx(exact / cached, abs=0.06)
    assert result.exit_code == (0 if all(f["ok"] for f in found.values()) else 1)


def test_a_refresh_at_every_step_is_exact_and_saves_nothing(dream, source):
    result, found = doctor("--canvas", source, "--json", "--canvas-cache", "checked:1", *dream)
    assert found["equal"]["value"].startswith("100.0 % of")
    assert numbers(found["drift"]["value"]) == [0, 0]
    assert found["veto"]["value"].startswith("0 of")
    assert "nothing is saved, use --canvas-cache none" in found["rows"]["value"]
    assert result.exit_code == 1


def test_without_a_veto_it_says_what_one_would_do(dream, source):
    _, found = doctor("--canvas", source, "--json", "--canvas-cache", "dual:4", *dream)
    assert "would be with the cache `checked`, above 0.25 nats" in found["veto"]["value"]


def test_a_bound_below_everything_vetoes_every_middle(dream, source):
    _, found = doctor("--canvas", source, "--json", "--canvas-cache", "checked:8,bound=0.000001", *dream)
    vetoed, places = numbers(found["veto"]["value"])[:2]
    assert 0 < vetoed <= places


def test_a_cache_that_is_switched_off_is_tried_all_the_same(dream, source):
    result, found = doctor("--canvas", source, "--json", "--canvas-cache", "none", *dream)
    assert "which is not in use" in found["canvas"]["value"]
    assert result.stderr == ""


def test_nano_has_an_exact_cache(source):
    result, found = doctor("--canvas", source, "--json")
    assert "its cache is exact" in found["canvas"]["value"]
    assert found["equal"]["value"].startswith("100.0 % of")
    warm, cold = numbers(found["rows"]["value"])
    assert warm < cold
    assert result.exit_code == 0


def test_people_get_a_line_each(source):
    result, _ = doctor("--canvas", source)
    lines = result.stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["canvas", "equal", "rows"]
    assert all(line.startswith("ok  ") for line in lines)


def test_without_files_our_own_source_is_used(dream):
    _, found = doctor("--canvas", "--json", *dream)
    assert "9 places" in found["canvas"]["value"]


def test_places_of_a_folder_and_of_a_file_are_the_same_at_every_call(source):
    (source.parent / "other.py").write_text(CODE)
    assert read_places(source) == read_places(source) != []
    assert len(read_places(source)) <= PLACES
    places = read_places(source.parent)
    assert places == read_places(source.parent)
    assert len(places) <= FOLDER_PLACES


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        ("a.bin", b"x", "no language that fimserver parses"),
        ("a.py", b"\xff\xfe\xff", "cannot be read"),
        ("a.py", b"\n\n", "has no line to cut out"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(name, data, complaint, tmp_path):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InputError, match=complaint):
        read_places(path)
    result = CliRunner().invoke(main, ["doctor", "--canvas", str(path)])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(("FILE",), "files are for doctor --canvas"), (("--canvas", "--calibrate"), "give either")],
)
def test_options_that_do_not_go_together_are_said(arguments, complaint, source):
    result, _ = doctor(*(source if a == "FILE" else a for a in arguments))
    assert result.exit_code == 2
    assert complaint in result.stderr


@pytest.mark.parametrize("spec", ["dual:16", "checked:4,share=0.25,bound=1,window=8", "dual:1000,typed=2"])
def test_rules_are_told_as_the_option_takes_them(spec):
    assert read_cache(spec_of(read_cache(spec))) == read_cache(spec)
