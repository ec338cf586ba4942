"""Probability that a suggestion is accepted, from the model's confidence in it.

A calibration curve per model and route, fitted on development spans (``models/confidence.json``, made by
``models/training/confidence.py``), gives the share of middles with a correct first line. It is shifted in log
odds by the acceptance observed for the same model, so that it fits this user.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fimserver.cards import MODELS
from fimserver.errors import InputError, first_problem
from fimserver.host.routing.length_model import Share

SEEN_WEIGHT = 20.0  # weight of the curve, in suggestions, against the observed acceptance
LEAST, MOST = 0.01, 0.99  # bounds of a probability, so that its log odds are finite


class Settled(NamedTuple):
    """A past suggestion: the model's confidence, and whether the user accepted it."""

    confidence: float
    used: bool


SettledSource = Callable[[str, str], Sequence[Settled]]  # takes route and model


class Curve(BaseModel):
    """Share of correct first lines by confidence: linear between points, constant outside."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    confidence: tuple[Share, ...] = Field(min_length=1)
    share: tuple[Share, ...]
    spans: int = Field(0, ge=0)  # number of spans that it was fitted on

    @model_validator(mode="after")
    def _rises(self) -> Curve:
        if len(self.confidence) != len(self.share):
            raise ValueError("confidence and share need the same number of points")
        if list(self.confidence) != sorted(set(self.confidence)) or list(self.share) != sorted(self.share):
            raise ValueError("the points must rise")
        return self

    def at(self, confidence: float) -> float:
        """Return the share at a confidence."""
        right = bisect_right(self.confidence, confidence)
        if right == 0 or right == len(self.confidence):
            return self.share[max(0, right - 1)]
        low, high = self.confidence[right - 1 : right + 1]
        weight = (confidence - low) / (high - low)
        return self.share[right - 1] * (1 - weight) + self.share[right] * weight


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    curves: dict[str, dict[str, Curve]]  # by route and model


class Chances:
    """Acceptance probabilities of one host. ``settled`` returns earlier suggestions of a model."""

    def __init__(
        self,
        settled: SettledSource = lambda _route, _model: (),
        curves: Mapping[str, Mapping[str, Curve]] | None = None,
    ) -> None:
        self._settled = settled
        self._curves = calibrated() if curves is None else curves

    def chance(self, route: str, model: str, confidence: float | None) -> float | None:
        """Return the probability of acceptance; ``None`` if the model has no curve or no confidence."""
        curve = self._curves.get(route, {}).get(model)
        if curve is None or confidence is None:
            return None
        past = self._settled(route, model)
        return shifted(curve.at(confidence), [curve.at(each.confidence) for each in past], past)


def shifted(chance: float, expected: Sequence[float], past: Sequence[Settled]) -> float:
    """Return ``chance`` shifted by the difference in log odds between observed and expected acceptance.

    ``expected``: value of the curve for each suggestion in ``past``.
    """
    if not past:
        return chance
    mean = fmean(expected)
    used = sum(each.used for each in past)
    seen = (used + SEEN_WEIGHT * mean) / (len(past) + SEEN_WEIGHT)
    return 1 / (1 + math.exp(-(_log_odds(chance) + _log_odds(seen) - _log_odds(mean))))


def _log_odds(chance: float) -> float:
    bounded = min(MOST, max(LEAST, chance))
    return math.log(bounded / (1 - bounded))


def read_curves(path: Path) -> Mapping[str, Mapping[str, Curve]]:
    """Read the curves in a file, by route and model. Raises ``InputError``."""
    try:
        return _File.model_validate_json(path.read_bytes()).curves
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error, 'file')}") from None


@cache
def calibrated() -> Mapping[str, Mapping[str, Curve]]:
    """Return the curves shipped with this package."""
    return read_curves(MODELS / "confidence.json")
