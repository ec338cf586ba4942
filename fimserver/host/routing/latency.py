"""Latency model: predicts how long each model takes on this device, learned from its answers.

The time of an answer is the number of uncached prompt rows times the time per row, plus the number of passes
times the time per pass. A pass is a round of speculative decoding on the ar route, a denoising step on the
dllm route. Each figure is the median of the last few observations, so that a single outlier has no effect and
a change of speed is learned after a few answers.
"""

from __future__ import annotations

import math
import statistics
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fimserver.kept_json import read_kept, write_kept
from fimserver.lengths import BUCKETS, bucket_of
from fimserver.reasons import Reason

SCHEMA = 1
RECENT = 7  # costs in a median: they vary little, and four answers at a new speed change it
LENGTHS = 25  # pass counts in a median: they vary a lot
ERRORS = 200
UNBIASED = 20  # weight, in answers, of the prior of no correction
CUT_SHORT = frozenset(
    {Reason.CANCELLED, Reason.SUPERSEDED, Reason.DEADLINE, Reason.FAILED, Reason.OUT_OF_MEMORY}
)
TOKENS_PER_LEXEME = 1.3  # code tokenizers are between 1.0 and 1.6


class LatencySample(NamedTuple):
    """Measured cost of one answer. ``passes``: forward passes after the prefill."""

    rows: int
    prefill_ms: float
    passes: int
    tokens: int
    total_ms: float
    reason: Reason

    @property
    def bucket(self) -> int:
        """Length bucket of the answer."""
        return bucket_of(self.tokens / TOKENS_PER_LEXEME)


def _recent(values: Iterable[float] = (), size: int = RECENT) -> deque[float]:
    return deque(values, maxlen=size)


@dataclass
class ModelCost:
    """Cost of one model on one route."""

    row_ms: deque[float] = field(default_factory=_recent)
    pass_ms: deque[float] = field(default_factory=_recent)
    # Tokens per pass: accepted in a round, or committed in a step.
    pass_tokens: deque[float] = field(default_factory=lambda: _recent(size=LENGTHS))
    # Passes by length bucket.
    passes: list[deque[float]] = field(default_factory=lambda: [_recent(size=LENGTHS) for _ in BUCKETS])
    reckoned: deque[float] = field(default_factory=lambda: _recent(size=ERRORS))  # before the correction
    actual: deque[float] = field(default_factory=lambda: _recent(size=ERRORS))
    errors: deque[float] = field(default_factory=lambda: _recent(size=ERRORS))  # log of actual / predicted

    @property
    def known(self) -> bool:
        """Whether a prediction is possible. A model without a cache has no separate cost per row."""
        return bool(self.pass_ms)

    @property
    def correction(self) -> float:
        """Ratio of actual to predicted time: this model may write shorter or longer middles than people."""
        if not self.actual:
            return 1.0
        usual = UNBIASED * sum(self.reckoned) / len(self.reckoned)
        return (sum(self.actual) + usual) / (sum(self.reckoned) + usual)

    def learn(self, seen: LatencySample, predicted_ms: float | None = None) -> None:
        """Learn from one answer, and from the error of its prediction."""
        if seen.rows and seen.prefill_ms > 0:
            self.row_ms.append(seen.prefill_ms / seen.rows)
        if seen.passes > 0 and seen.total_ms > seen.prefill_ms:
            self.pass_ms.append((seen.total_ms - seen.prefill_ms) / seen.passes)
        if seen.reason in CUT_SHORT or seen.total_ms <= 0:  # 0: it failed before it was timed
            return
        self.passes[seen.bucket].append(float(max(0, seen.passes)))
        if seen.passes > 0 and seen.tokens > 0:
            self.pass_tokens.append(seen.tokens / seen.passes)
        if predicted_ms and seen.total_ms > 0:
            self.errors.append(math.log(seen.total_ms / predicted_ms))
            self.reckoned.append(predicted_ms / self.correction)
            self.actual.append(seen.total_ms)

    def by_length(self, rows: int, lexemes: Iterable[float]) -> tuple[float, ...]:
        """Predict the milliseconds of an answer of each length. Needs ``known``."""
        row, step = (
            statistics.median(figures) if figures else 0.0 for figures in (self.row_ms, self.pass_ms)
        )
        return tuple(self.correction * (rows * row + self._passes(count) * step) for count in lexemes)

    def _passes(self, lexemes: float) -> float:
        """Median number of passes for this length, else estimated from the tokens per pass."""
        if seen := self.passes[bucket_of(lexemes)]:
            return statistics.median(seen)
        return (
            lexemes * TOKENS_PER_LEXEME / (statistics.median(self.pass_tokens) if self.pass_tokens else 1.0)
        )

    def error(self) -> dict[str, float]:
        """Percentiles of actual over predicted time of the last answers; empty if nothing was predicted."""
        ratios = sorted(math.exp(error) for error in self.errors)
        return (
            {f"p{p}": ratios[min(len(ratios) - 1, len(ratios) * p // 100)] for p in (10, 50, 90)}
            if ratios
            else {}
        )

    def dump(self) -> dict[str, Any]:
        return {
            name: [list(row) for row in value] if name == "passes" else list(value)
            for name, value in vars(self).items()
        }

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> ModelCost:
        """Read what ``dump`` returned. Raises ``KeyError``, ``TypeError``, ``ValueError`` for other data."""
        prices = {name: _figures(data[name]) for name in ("row_ms", "pass_ms")}
        passes = [_figures(data["passes"][bucket], LENGTHS) for bucket in BUCKETS]
        pass_tokens = _figures(data["pass_tokens"], LENGTHS)
        errors = _figures(data["errors"], ERRORS)
        pairs = {name: _figures(data[name], ERRORS) for name in ("reckoned", "actual")}
        return cls(**prices, **pairs, pass_tokens=pass_tokens, passes=passes, errors=errors)


def _figures(values: Iterable[Any], size: int = RECENT) -> deque[float]:
    figures = _recent(map(float, values), size)
    if not all(map(math.isfinite, figures)):
        raise ValueError("a figure is not finite")
    return figures


class LatencyModel:
    """Costs of all models of a host, kept in a file between runs. One thread learns, another may save."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._costs = _read(path) if path else dict[str, ModelCost]()
        self.unsaved = 0  # answers learned since the last save
        self._lock = threading.Lock()

    def cost(self, name: str) -> ModelCost:
        """Return the costs under a name (see ``cost_name``)."""
        return self._costs.setdefault(name, ModelCost())

    def learn(self, name: str, seen: LatencySample, predicted_ms: float | None = None) -> None:
        with self._lock:
            self.cost(name).learn(seen, predicted_ms)
            self.unsaved += 1

    def save(self) -> None:
        """Write the file. If it cannot be written, the costs are lost with the process."""
        with self._lock:
            self.unsaved = 0
            costs = {name: cost.dump() for name, cost in self._costs.items()}
        if self._path is None:
            return
        write_kept(self._path, {"schema": SCHEMA, "costs": costs})


def _read(path: Path) -> dict[str, ModelCost]:
    """Read costs from a file; empty if it is missing, damaged or of another schema."""
    try:
        data = read_kept(path)
        if data["schema"] != SCHEMA:
            return {}
        return {str(name): ModelCost.read(cost) for name, cost in data["costs"].items()}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return {}
