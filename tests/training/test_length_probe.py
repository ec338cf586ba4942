"""The recipe of the length probe: its data, its measurement, and the file that it writes."""

import random
import sys

import numpy as np
import pytest
import torch

from fimserver.ab.items.spans import Span
from fimserver.engine.denoising.length_probe import load_probe
from fimserver.engine.load import weights_hash
from models.training import length_probe
from models.training.length_probe import Sample, fit, sample, split
from tests.engine.test_autoregressive import CODE
from tests.training.searched import make_searched


def samples(count, files, seed=0):
    """The logarithm of the length is a sum of some features; the others are noise."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        features = rng.normal(3.0, 2.0, 12)
        log = 2.0 + 0.3 * features[1] - 0.2 * features[7]
        span = Span(str(i), f"f{i % files}", "span", "python", "", "x", "")
        made.append(Sample(span, max(1, round(float(np.exp(log)))), features))
    return made


def test_a_linear_map_is_found_and_noise_is_not():
    weight, bias = fit(samples(400, 20))
    assert bias == pytest.approx(2.0, abs=0.1)
    wanted = np.zeros(12)
    wanted[1], wanted[7] = 0.3, -0.2
    assert weight == pytest.approx(wanted, abs=0.03)


def test_lengths_that_nothing_predicts_are_the_same_for_all():
    made = samples(200, 20)
    lengths = [s.tokens for s in made]
    random.Random(1).shuffle(lengths)
    shuffled = [Sample(s.span, n, s.features) for s, n in zip(made, lengths, strict=True)]
    weight, bias = fit(shuffled)
    spread = np.std([s.features @ weight + bias for s in samples(200, 20, seed=5)])
    assert spread < 0.25 * np.std(np.log(lengths))


def test_files_are_in_one_half_alone_and_the_seed_says_in_which():
    made = samples(60, 12)
    fitted, held = split(made, 3)
    assert {s.span.group for s in fitted} & {s.span.group for s in held} == set()
    assert len({s.span.group for s in held}) == 3
    assert len(fitted) + len(held) == 60
    assert split(made, 3) == (fitted, held)
    assert any(split(made, seed)[1] != held for seed in range(5))


def test_spans_of_few_files_are_refused():
    with pytest.raises(SystemExit, match="the spans are from 7 files: give spans of 8 or more"):
        split(samples(60, 7), 0)


def test_real_hidden_states_say_more_than_a_constant(nano):
    """Nano, on middles of one and of many tokens: the error is below that of their median."""
    engine = nano.engine("dllm")
    lines = [line for line in CODE.splitlines(keepends=True) if line.strip()]
    made = []
    for i, line in enumerate(lines * 2):
        middle = line if i % 2 else line.strip()[:2]
        at = CODE.index(middle)
        span = Span(str(i), f"f{i % 9}", "span", "python", CODE[:at], middle, CODE[at + len(middle) :])
        made.append(sample(engine, span, 8))
    weight, bias = fit(made)
    logs = np.log([s.tokens for s in made])
    found = np.array([s.features @ weight + bias for s in made])
    assert np.abs(found - logs).mean() < 0.8 * np.abs(np.median(logs) - logs).mean()


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A card whose length is searched, its random model, and nine source files."""
    return tmp_path, *make_searched(tmp_path, monkeypatch, 9)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["length_probe", *map(str, arguments), "--device", "cpu"])
    length_probe.main()


def test_the_command_writes_a_file_that_its_card_loads_and_the_same_again(tiny, monkeypatch, capsys):
    root, card, sources = tiny
    run(monkeypatch, card, sources, "--limit", 40, "--slots", 6)
    text = capsys.readouterr().out
    table = [line.split(" | ")[0].strip("| ") for line in text.splitlines() if line.startswith("| ")]
    assert table == ["length", table[1], "CAL, published bias", "CAL, fitted bias", "probe"]
    assert table[1].startswith("always ")
    folder = root / "models" / "tiny-dream"
    written = folder / "adapters" / "tiny-dream-length.safetensors"
    probe = load_probe(written, weights_hash(folder), 64)
    assert probe.slots == 6
    assert probe.weight.abs().sum() > 0
    run(monkeypatch, card, sources, "--limit", 40, "--slots", 6, "--out", root / "again.safetensors")
    again = load_probe(root / "again.safetensors", weights_hash(folder), 64)
    assert torch.equal(again.weight, probe.weight)
    assert again.bias == probe.bias
    card.write_text(card.read_text() + f'length_probe = "{written.name}"\n')
    assert length_probe.open_engine(str(card), "cpu").probe.slots == 6


def test_a_model_in_blocks_is_refused(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="no canvas whose length"):
        run(monkeypatch, "sdar-1.7b", tmp_path)
