"""Chance that a suggestion is accepted, from the confidence that the model had in it.

A curve for each model and route, fitted on development spans (``models/confidence.json``, made by
``models/training/confidence.py``), gives the share of middles whose first line was right. The acceptance that
statistics have seen of the same model shifts it, on the scale of log odds, so that it fits this user.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fimserver.cards import MODELS
from fimserver.errors import InputError, first_problem

SEEN_WEIGHT = 20.0  # suggestions that the curve itself weighs against what was seen
LEAST, MOST = 0.01, 0.99  # of a chance, so that its log odds are finite
Share = Annotated[float, Field(ge=0, le=1)]


class Settled(NamedTuple):
    """A suggestion of the past: the model's confidence, and whether the user took it."""

    confidence: float
    used: bool


SettledSource = Callable[[str, str], Sequence[Settled]]  # of a route's model


class Curve(BaseModel):
    """Share of right first lines by confidence: straight between points, flat outside of them."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    confidence: tuple[Share, ...] = Field(min_length=1)
    share: tuple[Share, ...]
    spans: int = Field(0, ge=0)  # that it was fitted on

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
    """Chances of one host. ``settled`` gives what became of earlier suggestions of a model."""

    def __init__(
        self,
        settled: SettledSource = lambda _route, _model: (),
        curves: Mapping[str, Mapping[str, Curve]] | None = None,
    ) -> None:
        self._settled = settled
        self._curves = calibrated() if curves is None else curves

    def chance(self, route: str, model: str, confidence: float | None) -> float | None:
        """Return the chance that a suggestion is accepted; ``None`` where the model was never calibrated."""
        curve = self._curves.get(route, {}).get(model)
        if curve is None or confidence is None:
            return None
        past = self._settled(route, model)
        return shifted(curve.at(confidence), [curve.at(each.confidence) for each in past], past)


def shifted(chance: float, expected: Sequence[float], past: Sequence[Settled]) -> float:
    """Return ``chance`` moved by the log odds between the acceptance that was seen and that expected of it.

    ``expected``: what the curve says of each suggestion in ``past``.
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
    """Read the curves of a file. Raises ``InputError`` that says what is wrong with it."""
    try:
        return _File.model_validate_json(path.read_bytes()).curves
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error, 'file')}") from None


@cache
def calibrated() -> Mapping[str, Mapping[str, Curve]]:
    """Return the curves that come with this package."""
    return read_curves(MODELS / "confidence.json")
