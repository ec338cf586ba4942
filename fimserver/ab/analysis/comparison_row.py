"""One line of the table of a comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fimserver.ab.analysis.measures import Better


@dataclass(frozen=True)
class ComparisonRow:
    """One line of the table. ``None``: there is no such number."""

    metric: str
    label: str
    unit: str  # of a, b and a difference; a "share" is between 0 and 1
    better: Better
    stratum: str  # "all", "warm", "kind:line", "bucket:9-16", "language:python"
    n: int  # pairs, those that both arms have a number for
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
    p: float | None = None  # exact sign test; of the whole only, as strata describe
    p_holm: float | None = None  # corrected for all that were tested
    primary: bool = False  # what a claim rests on; the others describe
