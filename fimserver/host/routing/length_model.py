"""Length model: predicts the length of a middle from features of the text around the cursor.

Two logistic models on the same columns, one over the buckets of ``lengths`` and one for "more than one line".
Their weights are in ``models/length.json``, made by ``models/training/lengths.py`` with the columns of this
module.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fimserver.cards import MODELS
from fimserver.errors import InputError, first_problem
from fimserver.lengths import BUCKETS
from fimserver.types import Features, Request

SCHEMA = 1
MEDIAN = 0.5
Look = Literal["inside", "line_end", "fresh_line"]
LOOKS: tuple[Look, ...] = ("inside", "line_end", "fresh_line")

_FLAGS = (
    "string",
    "comment",
    "block_opened",
    "in_arguments",
    "statement_end",
    "empty_body",
    "blank_line",
    "right_text",
    "mid_word",
)
_STEPS = {"indentation": (0, 4, 8, 12), "bracket_debt": (0, 1, 2), "expected_lines": (1, 2, 3)}
# At the end of a header (no blank line) a middle begins with a line end, so it has several lines.
_PAIR = ("block_opened", "blank_line")
# A column is 1 if its name is true of the features, else 0. The language is not a column: the training corpus
# is Python only. All products of two flags, and boosted trees instead of logistic models, were hardly better
# on other files.
NAMES = (*_FLAGS, *(f"{name}>{step}" for name, steps in _STEPS.items() for step in steps), "&".join(_PAIR))


def columns(features: Features) -> tuple[float, ...]:
    """Convert features to numbers, one for each of ``NAMES``."""
    places = (features.place == "string", features.place == "comment")
    flags = (*places, *(bool(getattr(features, name)) for name in _FLAGS[2:]))
    steps = (getattr(features, name) > step for name, steps in _STEPS.items() for step in steps)
    return tuple(map(float, (*flags, *steps, all(getattr(features, name) for name in _PAIR))))


def look(prefix: str, suffix: str) -> Look:
    """Classify a cursor's line: text after the cursor, only before it, or blank."""
    if suffix.partition("\n")[0].strip():
        return "inside"
    return "line_end" if prefix.rpartition("\n")[2].strip() else "fresh_line"


class LengthPrediction(NamedTuple):
    """Predicted length of a middle."""

    probabilities: tuple[float, ...]  # of the buckets
    lexemes: float
    chars: float
    multi_line: float  # probability of more than one line

    @property
    def bucket(self) -> int:
        """Bucket of the median; the most probable bucket is nearly always the first or the last."""
        return min(bisect_left(tuple(accumulate(self.probabilities)), MEDIAN), BUCKETS[-1])


Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
PerBucket = Annotated[tuple[Finite, ...], Field(min_length=len(BUCKETS), max_length=len(BUCKETS))]
PerColumn = Annotated[tuple[Finite, ...], Field(min_length=len(NAMES), max_length=len(NAMES))]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class MultilineModel(_Data):
    """Model of "more than one line"."""

    weights: PerColumn
    bias: Finite
    marginals: dict[Look, Share]  # used without features


class LengthModel(_Data):
    """Contents of ``models/length.json``, without the record of its training."""

    features: tuple[str, ...]
    weights: tuple[PerColumn, ...] = Field(min_length=len(BUCKETS), max_length=len(BUCKETS))
    bias: PerBucket
    chars_per_lexeme: Finite
    chars: PerBucket  # mean of middles, by bucket
    lexemes: PerBucket
    marginals: dict[Look, PerBucket]
    multi_line: MultilineModel

    @model_validator(mode="after")
    def _fits_this_version(self) -> LengthModel:
        if self.features != NAMES:
            raise ValueError("the columns are others than this fimserver's")
        if not set(LOOKS) == set(self.marginals) == set(self.multi_line.marginals):
            raise ValueError(f"the marginals are not those of {', '.join(LOOKS)}")
        if any(min(shares) < 0 or abs(sum(shares) - 1) > 1e-6 for shares in self.marginals.values()):
            raise ValueError("the marginals are not distributions")
        return self

    def length(self, features: Features | None, prefix: str, suffix: str) -> LengthPrediction:
        """Predict the length between ``prefix`` and ``suffix``; the texts are used only without features."""
        if features is None:
            seen = look(prefix, suffix)
            return self._of(self.marginals[seen], self.multi_line.marginals[seen])
        row = columns(features)
        scores = [_dot(weights, row) + bias for weights, bias in zip(self.weights, self.bias, strict=True)]
        return self._of(_softmax(scores), _sigmoid(_dot(self.multi_line.weights, row) + self.multi_line.bias))

    def _of(self, probabilities: tuple[float, ...], multi_line: float) -> LengthPrediction:
        return LengthPrediction(
            probabilities, _dot(probabilities, self.lexemes), _dot(probabilities, self.chars), multi_line
        )


def read_model(path: Path) -> LengthModel:
    """Read a model from disk. Raises ``InputError``."""
    again = "make it again with `python -m models.training.lengths`, or install fimserver again"
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}): {again}") from None
    except ValueError:
        raise InputError(f"{path} is not JSON: {again}") from None
    found = data.get("schema") if isinstance(data, dict) else None
    if found != SCHEMA:
        raise InputError(f"{path} has schema {found!r}, this fimserver reads {SCHEMA}: {again}")
    try:
        return LengthModel.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error, 'file')}: {again}") from None


@cache
def shipped() -> LengthModel:
    """Return the model shipped with fimserver."""
    return read_model(MODELS / "length.json")


def expected(features: Features | None, request: Request) -> LengthPrediction:
    """Predict the length of a request's middle with the shipped model."""
    return shipped().length(features, request.prefix, request.suffix)


def mean_lexemes() -> tuple[float, ...]:
    """Mean number of lexemes of middles, by bucket."""
    return shipped().lexemes


def mean_chars() -> tuple[float, ...]:
    """Mean number of characters of middles, by bucket."""
    return shipped().chars


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(left, right, strict=True))


def _softmax(scores: Sequence[float]) -> tuple[float, ...]:
    top = max(scores)
    powers = [math.exp(score - top) for score in scores]
    total = math.fsum(powers)
    return tuple(power / total for power in powers)


def _sigmoid(score: float) -> float:
    return 1 / (1 + math.exp(-score)) if score >= 0 else 1 - 1 / (1 + math.exp(score))
