"""The evaluation: its baselines and its bits."""

import math
import random

import torch

from models.training.evaluate import bits, longest_match, ngram_fill, score, spans
from models.training.holes import Hole
from models.training.rows import Layout, RowMaker
from tests.training.test_rows import CODE, MAKER

WIDE = RowMaker(MAKER.tokenizer, Layout(middle=128))


def test_the_longest_and_latest_match_wins():
    assert longest_match("ab1 b2 ab3 b", "") == "2 ab3 b"
    assert longest_match("ab1 ab", "ab9") == "1 ab"
    assert longest_match("x ab", "ab9") == "9"
    assert longest_match("q", "ab9") == ""


def test_copying_a_repeated_line_is_exact_and_parses():
    text = "value = compute(1)\nother = 2\nvalue = compute(1)\nother = 2\n"
    start = text.rindex("compute")
    hole = Hole(text, start, start + len("compute(1)"), "line_tail")
    result, middle = score(hole, "1-8", ngram_fill)
    assert middle == "compute(1)"
    assert result.exact
    assert result.parses
    assert result.similarity == 1.0


def test_bits_equal_the_loss_of_the_same_prompt_computed_apart(nano):
    loaded = nano.runtime(nano.card("ar")).loaded
    hole = Hole(CODE, 200, 320, "test")
    context, middle = WIDE.tokens(hole, random.Random(0))
    ids = torch.tensor([context + middle])
    with torch.inference_mode():
        logp = loaded.model(input_ids=ids).logits[0].log_softmax(-1)
    nats = -sum(float(logp[len(context) - 1 + i, t]) for i, t in enumerate(middle))
    ar, dllm = bits(loaded, WIDE, hole, random.Random(1))
    assert math.isclose(ar, nats / math.log(2), rel_tol=1e-4)
    assert dllm > 0
    assert middle[-1] == WIDE.eot


def test_spans_are_seeded_and_fill_every_bucket():
    first = [(h.start, h.end, b) for h, b in spans([CODE], WIDE, 16, seed=3)]
    assert first == [(h.start, h.end, b) for h, b in spans([CODE], WIDE, 16, seed=3)]
    assert sorted({b for *_, b in first}) == ["1-8", "17-32", "33-64", "9-16"]
