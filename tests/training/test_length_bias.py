"""The refit of the length search: its measurement, and that a card with it searches by it."""

import sys

import pytest

from fimserver.ab.items.spans import Span
from fimserver.canvas_card import Canvas
from fimserver.engine.denoising.canvas_length import LENGTHS, bias, bias_of
from fimserver.engine.forward.passes import finish
from models.training import length_bias
from models.training.length_bias import MaskedConfidence, confidences, fit, report, search, tokens_of
from tests.engine.denoising.test_dual_cache import FAMILIES, engine_of, folders  # noqa: F401 - fixtures
from tests.engine.test_autoregressive import CODE, REQUEST
from tests.tiny import DREAM_CANVAS
from tests.training.searched import make_searched

SPANS = [
    Span(str(at), "code.py", "span", "python", CODE[:at], CODE[at : at + 9], CODE[at + 9 :])
    for at in range(30, 90, 10)
]


def test_the_bias_of_a_length_is_measured_where_it_is_not_the_right_one():
    measured = [
        MaskedConfidence(2, (0.9, 0.3)),
        MaskedConfidence(4, (0.2, 0.8)),
        MaskedConfidence(30, (0.4, 0.5)),
    ]
    assert fit(measured) == pytest.approx((0.3, 0.4))


def test_a_length_that_all_spans_have_is_measured_on_them():
    assert fit([MaskedConfidence(2, (0.9, 0.1)), MaskedConfidence(2, (0.7, 0.3))]) == pytest.approx(
        (0.8, 0.2)
    )


def test_a_measured_bias_is_linear_between_lengths_and_flat_beyond():
    curve = bias_of((0.8, 0.6, 0.5))
    assert [curve(n) for n in (1, 2, 3, 4, 5, 6, 60)] == pytest.approx([0.8, 0.8, 0.7, 0.6, 0.55, 0.5, 0.5])
    assert bias_of((0.4,))(9) == 0.4
    full = bias_of([bias(n) for n in LENGTHS])
    assert [full(n) for n in LENGTHS] == pytest.approx([bias(n) for n in LENGTHS])


def test_a_span_has_a_confidence_for_each_length_up_to_the_limit(engine_of):  # noqa: F811
    found = confidences(engine_of("dream-search", "none"), SPANS[0])
    assert len(found.confidence) == sum(n <= DREAM_CANVAS["max_tokens"] for n in LENGTHS)
    assert all(0 < p <= 1 for p in found.confidence)
    assert found.tokens > 0


def test_the_search_finds_the_length_whose_bias_is_low(engine_of):  # noqa: F811
    engine = engine_of("dream-search", "none")

    def only(wanted):
        return lambda slots: 1e-6 if slots == wanted else 1.0

    for wanted in (4, 6):
        assert search(engine, SPANS[0], only(wanted)).tokens == wanted


def test_the_search_counts_its_passes_without_those_over_the_prompt(nano):
    """Three in a row that are worse end it."""
    engine = nano.engine("dllm")
    falling = {n: 0.001 * 10.0**place for place, n in enumerate(LENGTHS)}
    assert search(engine, SPANS[0], falling.__getitem__) == (2, 4)
    assert tokens_of(engine, SPANS[0]) > 0


def test_a_card_with_a_bias_is_searched_by_it(engine_of):  # noqa: F811
    low = tuple(1e-6 if n == 6 else 1.0 for n in LENGTHS[:7])
    engine = engine_of("dream-search", "none", canvas=FAMILIES["dream-search"][2] | {"length_bias": low})
    assert finish(engine._slots(engine.open_canvas(REQUEST), 0, 24, length_bias.Deadline())) == 6
    with pytest.raises(ValueError, match="length_bias"):
        Canvas.model_validate(DREAM_CANVAS | {"length": "search", "length_bias": (0.5, 0.0)})


def test_the_report_has_both_curves_and_the_line_of_the_card(engine_of):  # noqa: F811
    text = report(engine_of("dream-search", "none"), SPANS)
    assert "| published |" in text
    assert "| refit |" in text
    values = text.rpartition("length_bias = [")[2].rstrip("]").split(", ")
    assert len(values) == sum(n <= DREAM_CANVAS["max_tokens"] for n in LENGTHS)
    Canvas.model_validate(DREAM_CANVAS | {"length": "search", "length_bias": tuple(map(float, values))})


def test_the_command_reads_a_card_and_a_folder(tmp_path, monkeypatch, capsys):
    card, sources = make_searched(tmp_path, monkeypatch, 4)
    monkeypatch.setattr(sys, "argv", ["length_bias", str(card), str(sources), "--device", "cpu"])
    length_bias.main()
    assert "length_bias = [" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["length_bias", "nano", str(sources), "--device", "cpu"])
    with pytest.raises(SystemExit, match="does not search"):
        length_bias.main()
