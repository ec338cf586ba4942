"""The data of the length model, and that the measured model is that of the host."""

import json
import random
import sys

import pytest

from fimserver.ab.items.cuts import KINDS
from fimserver.host.routing.length_model import NAMES, LengthModel, columns, read_model
from fimserver.lengths import BUCKETS, bucket_of
from models.training import lengths
from models.training.corpus import RESERVED, SEPARATOR, VALIDATION
from models.training.lengths import OUT, fit, marginal, measure, read_files, samples


def code(number, rng):
    """A file with middles of all lengths."""
    lines = [
        f"    value_{i} = compute(argument_{i}, {rng.randrange(99)}) + other[{i}]"
        for i in range(rng.randrange(1, 12))
    ]
    return "\n".join(
        [
            f'"""File {number}."""',
            "",
            "",
            f"def function_{number}(argument):",
            *lines,
            "    return value_0",
            "",
            "x = 1",
            "",
        ]
    )


@pytest.fixture(scope="module")
def texts():
    rng = random.Random(0)
    return [code(number, rng) for number in range(60)]


def test_each_file_gives_each_kind_once_and_always_the_same(texts):
    some = list(samples(texts, 0))
    assert [sample.kind for sample in some[:5]] == [*KINDS, "in_line"]
    assert some == list(samples(texts, 0)) != list(samples(texts, 1))
    assert {sample.look for sample in some} == {"inside", "line_end", "fresh_line"}
    assert {sample.kind for sample in some if sample.multi_line} >= {"block", "body"}
    assert {sample.bucket for sample in some} == set(BUCKETS)


def test_features_are_those_of_the_cursor(texts):
    for sample in samples(texts, 0):
        assert sample.features.language == "python"
        assert sample.kind in {"in_line", "body"} or sample.features.blank_line == (
            sample.kind != "line_rest"
        )
        assert sample.kind == "in_line" or not sample.features.right_text
        assert sample.bucket == bucket_of(sample.lexemes)
        assert len(columns(sample.features)) == len(NAMES)


def test_some_bodies_begin_at_the_end_of_their_header(texts):
    bodies = [sample for sample in samples(texts, 0) if sample.kind == "body"]
    at_header = [sample for sample in bodies if not sample.features.blank_line]
    assert 0 < len(at_header) < len(bodies) / 2
    assert all(sample.features.block_opened and sample.multi_line for sample in at_header)


def test_a_marginal_is_a_distribution_without_zeros():
    assert marginal([]) == pytest.approx([0.2] * 5)
    assert marginal([0] * 95) == pytest.approx([0.96, 0.01, 0.01, 0.01, 0.01])


def test_the_fit_is_what_the_host_reads_and_better_than_no_features(texts):
    training, held_out = list(samples(texts[:40], 0, 4)), list(samples(texts[40:], 1, 4))
    data = fit(training, 0)
    LengthModel.model_validate(data)
    found = measure(data, training, held_out)
    assert sum(map(sum, found["confusion"])) == len(held_out)
    assert [sum(row) for row in found["confusion"]] == [
        sum(s.bucket == bucket for s in held_out) for bucket in BUCKETS
    ]
    assert found["log_loss"]["model"] < found["log_loss"]["marginal"]
    assert found["multi_line_log_loss"]["model"] < found["multi_line_log_loss"]["marginal"]
    hits = sum(found["confusion"][bucket][bucket] for bucket in BUCKETS)
    assert found["accuracy"]["model"] == pytest.approx(hits / len(held_out), abs=1e-6)


def test_too_few_middles_are_an_error(texts):
    with pytest.raises(ValueError, match=r"no middle of .* lexemes: give more files"):
        fit(list(samples(["x = 1\n"], 0)), 0)


def test_long_files_are_left_out(tmp_path):
    (tmp_path / "train.txt").write_text(SEPARATOR.join(["x = 1\n", "y = 2\n" * 20_000]), "utf-8")
    assert read_files(tmp_path, "train") == ["x = 1\n"]


def test_the_recipe_writes_a_file_that_says_what_it_is_made_of(texts, tmp_path, monkeypatch):
    for split, some in (("train", texts[:40]), ("valid", texts[40:])):
        (tmp_path / f"{split}.txt").write_text(SEPARATOR.join(some), "utf-8")
    sources = [
        {"name": split, "version": "1", "licence": "MIT", "split": split} for split in ("train", "valid")
    ]
    (tmp_path / "sources.json").write_text(json.dumps(sources), "utf-8")
    out = tmp_path / "length.json"
    monkeypatch.setattr(
        sys, "argv", ["lengths", "--corpus", str(tmp_path), "--out", str(out), "--files", "30"]
    )
    lengths.main()
    read_model(out)
    trained_on = json.loads(out.read_bytes())["trained_on"]
    assert trained_on["train"]["packages"] == {"train": "1"}
    assert trained_on["valid"]["packages"] == {"valid": "1"}
    assert (trained_on["train"]["files"], trained_on["valid"]["files"]) == (30, 20)


def test_the_shipped_file_was_measured_on_packages_that_it_did_not_learn_from():
    data = json.loads(OUT.read_bytes())
    splits = [set(data["trained_on"][split]["packages"]) for split in ("train", "valid")]
    assert not splits[0] & splits[1]
    assert splits[1] == VALIDATION
    assert not RESERVED & (splits[0] | splits[1])
    assert sum(map(sum, data["confusion"])) == sum(data["trained_on"]["valid"]["middles"].values())
    assert data["log_loss"]["model"] < data["log_loss"]["look"] < data["log_loss"]["marginal"]
