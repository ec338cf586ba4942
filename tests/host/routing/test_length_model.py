"""Predicted length of a middle."""

import itertools
import json
import random

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from fimserver.errors import InputError
from fimserver.host.routing.length_model import (
    LOOKS,
    NAMES,
    columns,
    expected,
    look,
    mean_chars,
    mean_lexemes,
    read_model,
    shipped,
)
from fimserver.lengths import BUCKETS, LABELS, bucket_of
from fimserver.types import Features, Request

FLAGS = (
    "block_opened",
    "in_arguments",
    "statement_end",
    "empty_body",
    "blank_line",
    "right_text",
    "mid_word",
)
PLACES = ("code", "string", "comment")
NOTHING = {
    "language": "python", "place": "code", "indentation": 0, "bracket_debt": 0, "expected_lines": 1,
} | dict.fromkeys(FLAGS, False)  # fmt: skip


def features(**changes):
    return Features(**NOTHING | changes)


def drawn(rng):
    return features(
        place=rng.choice(PLACES),
        indentation=rng.randrange(0, 24),
        bracket_debt=rng.randrange(0, 5),
        expected_lines=rng.randrange(1, 6),
        **{flag: rng.random() < 0.5 for flag in FLAGS},
    )


def data(**changes):
    """A valid file with equally likely buckets."""
    marginal = [1 / len(LABELS)] * len(LABELS)
    lines = {"weights": [0.0] * len(NAMES), "bias": 0.0, "marginals": dict.fromkeys(LOOKS, 0.25)}
    return {
        "schema": 1,
        "features": list(NAMES),
        "weights": [[0.0] * len(NAMES) for _ in BUCKETS],
        "bias": [0.0] * len(LABELS),
        "chars_per_lexeme": 4.0,
        "chars": [10.0, 20.0, 30.0, 40.0, 50.0],
        "lexemes": [1.0, 2.0, 3.0, 4.0, 5.0],
        "marginals": dict.fromkeys(LOOKS, marginal),
        "multi_line": lines,
    } | changes


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def true(features):
    return {name for name, value in zip(NAMES, columns(features), strict=True) if value}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, set()),
        ({"place": "string"}, {"string"}),
        ({"place": "comment", "mid_word": True}, {"comment", "mid_word"}),
        ({"indentation": 8}, {"indentation>0", "indentation>4"}),
        (
            {"bracket_debt": 9, "expected_lines": 2},
            {"bracket_debt>0", "bracket_debt>1", "bracket_debt>2", "expected_lines>1"},
        ),
        (
            {"block_opened": True, "blank_line": True},
            {"block_opened", "blank_line", "block_opened&blank_line"},
        ),
        *(({flag: True}, {flag}) for flag in FLAGS),
    ],
)
def test_a_column_is_one_where_its_name_is_true(changes, names):
    assert true(features(**changes)) == names
    assert set(columns(features(**changes))) <= {0.0, 1.0}


def test_the_language_changes_nothing():
    assert columns(features(language="go")) == columns(features(language="python"))


@pytest.mark.parametrize(
    ("prefix", "suffix", "name"),
    [
        ("f(", ")\n", "inside"),
        ("", "x", "inside"),
        ("x = ", "\ny = 1\n", "line_end"),
        ("x = ", " \r\ny\r\n", "line_end"),
        ("x", "", "line_end"),
        ("if x:\n    ", "\n", "fresh_line"),
        ("x\r\n", "\r\ny", "fresh_line"),
        ("", "", "fresh_line"),
    ],
)
def test_what_plain_text_shows(prefix, suffix, name, tmp_path):
    assert look(prefix, suffix) == name
    shares = {other: [0.0, 0.0, 0.0, 0.0, 1.0] for other in LOOKS} | {name: [0.0, 1.0, 0.0, 0.0, 0.0]}
    model = read_model(write(tmp_path / "length.json", data(marginals=shares)))
    length = model.length(None, prefix, suffix)
    assert length == ((0.0, 1.0, 0.0, 0.0, 0.0), 2.0, 20.0, 0.25)
    assert length.bucket == 1


def test_the_host_says_what_scikit_learn_says(tmp_path):
    rng = random.Random(0)
    some = [drawn(rng) for _ in range(400)]
    x = np.array([columns(each) for each in some])
    buckets = [(each.expected_lines + each.blank_line + rng.randrange(2)) % len(LABELS) for each in some]
    lines = [each.blank_line ^ (rng.random() < 0.2) for each in some]
    by_bucket, by_lines = (LogisticRegression(max_iter=2000).fit(x, truth) for truth in (buckets, lines))
    multi_line = data()["multi_line"] | {
        "weights": by_lines.coef_[0].tolist(),
        "bias": float(by_lines.intercept_[0]),
    }
    weights, bias = by_bucket.coef_.tolist(), by_bucket.intercept_.tolist()
    path = write(tmp_path / "length.json", data(weights=weights, bias=bias, multi_line=multi_line))
    for each in (drawn(rng) for _ in range(200)):
        length = read_model(path).length(each, "", "")
        row = [columns(each)]
        assert length.probabilities == pytest.approx(by_bucket.predict_proba(row)[0], abs=1e-9)
        assert length.multi_line == pytest.approx(by_lines.predict_proba(row)[0, 1], abs=1e-9)
        assert (
            sum(length.probabilities[: length.bucket]) < 0.5 <= sum(length.probabilities[: length.bucket + 1])
        )


def test_scores_beyond_the_range_of_exp_are_probabilities(tmp_path):
    lines = data()["multi_line"] | {"bias": -1e5}
    model = read_model(write(tmp_path / "length.json", data(bias=[1e5, -1e5, 0, 0, 0], multi_line=lines)))
    assert model.length(features(), "", "") == ((1.0, 0.0, 0.0, 0.0, 0.0), 1.0, 10.0, 0.0)


class TestShipped:
    def test_all_features_give_distributions(self):
        steps = itertools.product(PLACES, (0, 3, 8, 12, 99), (0, 1, 2, 7), (1, 2, 3, 5))
        for place, indentation, debt, lines in steps:
            for flags in itertools.product((False, True), repeat=len(FLAGS)):
                seen = dict(zip(FLAGS, flags, strict=True))
                known = features(
                    place=place, indentation=indentation, bracket_debt=debt, expected_lines=lines, **seen
                )
                length = shipped().length(known, "", "")
                assert len(length.probabilities) == len(LABELS)
                assert min(length.probabilities) >= 0
                assert abs(sum(length.probabilities) - 1) < 1e-9
                assert mean_lexemes()[0] <= length.lexemes <= mean_lexemes()[-1]
                assert mean_chars()[0] <= length.chars <= mean_chars()[-1]
                assert 0 <= length.multi_line <= 1

    def test_means_lie_in_their_buckets(self):
        assert [bucket_of(count) for count in mean_lexemes()] == list(BUCKETS)
        assert list(mean_chars()) == sorted(mean_chars())
        assert 1 < shipped().chars_per_lexeme < 10

    def test_an_empty_body_is_longer_than_the_rest_of_a_line(self):
        asked = Request("def f():\n    ", "\n")
        body = features(block_opened=True, empty_body=True, blank_line=True, indentation=4, expected_lines=5)
        rest = features(indentation=4)
        assert expected(body, asked).lexemes > 3 * expected(rest, asked).lexemes
        assert expected(body, asked).multi_line > 0.5 > expected(rest, asked).multi_line

    def test_at_the_end_of_a_header_a_body_is_expected(self):
        header = features(block_opened=True, empty_body=True, expected_lines=5)
        assert expected(header, Request("def f():", "\n")).multi_line > 0.5

    def test_without_features_the_text_decides(self):
        inside, fresh = (expected(None, Request(*texts)) for texts in (("f(", ")\n"), ("a\n", "\nb\n")))
        assert inside.probabilities == shipped().marginals["inside"]
        assert fresh.probabilities == shipped().marginals["fresh_line"]
        assert fresh.lexemes > inside.lexemes


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "schema None, this fimserver reads 1"),
        (data(schema=2), "schema 2, this fimserver reads 1"),
        (data(features=list(NAMES[1:])), "columns are others"),
        (data(weights=[[0.0] * len(NAMES)]), "weights: Tuple should have at least 5 items"),
        (data(weights=[[0.0]] * len(LABELS)), r"weights\.0: Tuple should have at least"),
        (data(bias=[0.0] * 6), "bias: Tuple should have at most 5 items"),
        (data(bias=[float("nan")] * 5), r"bias\.0: Input should be a finite number"),
        (data(marginals={"inside": [0.2] * 5}), "marginals are not those of inside, line_end, fresh_line"),
        (data(marginals=dict.fromkeys(LOOKS, [0.3] * 5)), "not distributions"),
        (
            {name: value for name, value in data().items() if name != "multi_line"},
            "multi_line: Field required",
        ),
    ],
)
def test_a_file_that_cannot_be_used_says_why_and_what_to_do(content, says, tmp_path):
    with pytest.raises(
        InputError, match=rf"length\.json.*{says}.*make it again with .python -m models\.training\.lengths"
    ):
        read_model(write(tmp_path / "length.json", content))


def test_a_file_that_is_not_there_says_so(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_model(tmp_path / "length.json")
