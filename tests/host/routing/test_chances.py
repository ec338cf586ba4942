"""Probability that a suggestion is accepted."""

import json
from itertools import pairwise

import pytest

from fimserver.errors import InputError
from fimserver.host.routing.chances import Chances, Curve, Settled, calibrated, read_curves

CURVE = Curve(confidence=(0.2, 0.4, 0.8), share=(0.1, 0.1, 0.5))


def chances(*past):
    return Chances(lambda _route, _model: past, {"ar": {"m": CURVE}})


@pytest.mark.parametrize(
    ("confidence", "share"), [(0, 0.1), (0.2, 0.1), (0.3, 0.1), (0.6, 0.3), (0.8, 0.5), (0.81, 0.5), (1, 0.5)]
)
def test_a_curve_is_straight_between_its_points_and_flat_outside(confidence, share):
    assert chances().chance("ar", "m", confidence) == pytest.approx(share)


@pytest.mark.parametrize(
    ("route", "model", "confidence"), [("dllm", "m", 0.5), ("ar", "other", 0.5), ("ar", "m", None)]
)
def test_what_was_never_calibrated_has_no_chance(route, model, confidence):
    assert chances().chance(route, model, confidence) is None


def test_acceptance_as_expected_changes_nothing():
    past = [Settled(0.8, used=True), Settled(0.8, used=False)] * 50
    assert chances(*past).chance("ar", "m", 0.6) == pytest.approx(0.3)


@pytest.mark.parametrize("confidence", [0.1, 0.4, 0.6, 0.9])
def test_the_less_was_accepted_the_lower_is_the_chance(confidence):
    found = [
        chances(*[Settled(0.8, used=i < used) for i in range(200)]).chance("ar", "m", confidence)
        for used in (200, 150, 100, 50, 10, 0)
    ]
    assert all(more > less for more, less in pairwise(found))
    assert all(0 < chance < 1 for chance in found)


def test_what_many_suggestions_have_shown_outweighs_the_curve():
    past = [Settled(0.8, used=i % 10 == 0) for i in range(2000)]
    assert chances(*past).chance("ar", "m", 0.8) == pytest.approx(0.1, abs=0.01)
    assert chances(*past[:3]).chance("ar", "m", 0.8) == pytest.approx(0.48, abs=0.05)


def test_a_threshold_that_hides_does_not_loosen_itself():
    """Only shown suggestions count, compared with the expectation for them."""
    surest = [Settled(0.8, used=i % 2 == 0) for i in range(300)]
    assert chances(*surest).chance("ar", "m", 0.3) == pytest.approx(0.1, abs=0.01)


def test_the_shipped_curves_can_be_read():
    for models in calibrated().values():
        for curve in models.values():
            assert curve.spans >= 100


@pytest.mark.parametrize(
    "curve",
    [
        {"confidence": [0.5, 0.2], "share": [0.1, 0.2]},
        {"confidence": [0.2, 0.2], "share": [0.1, 0.2]},
        {"confidence": [0.2, 0.5], "share": [0.2, 0.1]},
        {"confidence": [0.2, 0.5], "share": [0.2]},
        {"confidence": [], "share": []},
        {"confidence": [0.2], "share": [1.5]},
    ],
)
def test_a_file_that_is_no_curve_is_named(tmp_path, curve):
    path = tmp_path / "confidence.json"
    path.write_text(json.dumps({"curves": {"ar": {"m": curve}}}))
    with pytest.raises(InputError, match=r"confidence\.json"):
        read_curves(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_curves(tmp_path / "none.json")
