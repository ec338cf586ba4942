"""Comparison row: one line of the table of a comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fimserver.ab.analysis.measures import Better


@dataclass(frozen=True)
class ComparisonRow:
    """One line of the table. ``None``: not available."""

    metric: str
    label: str
    unit: str  # of a, b and their difference; a "share" is between 0 and 1
    better: Better
    stratum: str  # "all", "warm", "kind:line", "bucket:9-16", "language:python"
    n: int  # pairs for which both arms have a number
    groups: int
    effect: Literal["difference", "ratio"]
    a: float | None = None
    b: float | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    a_low: float | None = None
    a_high: float | None = None
    b_low: float | None = None
    b_high: float | None = None
    p: float | None = None  # exact sign test, only over all items: strata are descriptive
    p_holm: float | None = None  # corrected for all tests
    primary: bool = False  # primary endpoint; the others are descriptive
