"""Headline of a comparison: up to three sentences with the result, B against A as in the table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fimserver.ab.analysis.comparison_row import ComparisonRow
from fimserver.ab.analysis.measures import ALL
from fimserver.ab.analysis.statistics import MIN_CLUSTERS

MARGIN = 0.02  # non-inferiority margin of the kept share


def headline(comparisons: Sequence[ComparisonRow]) -> tuple[str, ...]:
    """Return sentences on time, exact middles and kept characters per second, with the signs of the table."""
    whole = {line.metric: line for line in comparisons if line.stratum == ALL}
    sentences = (
        (
            _speed_sentence(whole["answer_ms_ratio"], whole.get("kept_share"))
            if "answer_ms_ratio" in whole
            else ""
        ),
        _exact_sentence(whole["exact"]) if "exact" in whole else "",
        _value_sentence(whole["chars_per_s_300"]) if "chars_per_s_300" in whole else "",
    )
    return tuple(sentence for sentence in sentences if sentence)


def _speed_sentence(line: ComparisonRow, kept: ComparisonRow | None) -> str:
    if line.value is None:
        return ""
    sentence = f"B answered {_ratio(line)} as fast as A"
    if line.low is None or line.high is None or line.low <= 1 <= line.high:
        return f"{sentence}{_not_shown(line)}."
    fast, slow = ("B", "A") if line.value > 1 else ("A", "B")
    worst = None if kept is None else kept.low if fast == "B" else kept.high and -kept.high
    held = worst is not None and worst > -MARGIN
    verb = "is" if held else "is not shown to be"
    return (
        f"{sentence}; the kept share of {fast}, the faster one, {verb} within {100 * MARGIN:.0f} points of"
        f" {slow}'s."
    )


def _exact_sentence(line: ComparisonRow) -> str:
    if line.a is None or line.b is None or line.value is None:
        return ""
    low, high = (None if end is None else 100 * end for end in (line.low, line.high))
    p = "" if line.p is None else ", p < 0.001" if line.p < 0.001 else f", p = {line.p:.2g}"
    points = f"{100 * line.value:+.1f} points{_bounds(low, high)}{p}"
    sentence = f"B was exact on {100 * line.b:.1f} % against {100 * line.a:.1f} % of A ({points})"
    if low is None or high is None or low <= 0 <= high:
        return f"{sentence}{_not_shown(line)}."
    return f"{sentence}."


def _value_sentence(line: ComparisonRow) -> str:
    if line.value is None or line.value <= 0:
        return ""
    ratio = _ratio(line)
    sentence = f"B kept {ratio} as many characters per second as A, with 300 ms to read each suggestion"
    shown = line.low is not None and line.high is not None and not line.low <= 1 <= line.high
    return f"{sentence}." if shown else f"{sentence}{_not_shown(line)}."


def _not_shown(line: ComparisonRow) -> str:
    """Return why no difference is claimed: no interval, or one that includes no difference."""
    if line.low is None or line.high is None:
        if line.groups < MIN_CLUSTERS:
            return (
                f"; {line.groups} groups are too few for an interval ({MIN_CLUSTERS} are needed), so this may"
                " be chance"
            )
        return (
            "; the items allow no interval (a few groups outweigh the rest, or an arm kept nothing), so this"
            " may be chance"
        )
    if line.effect == "ratio":
        smallest = f"{math.sqrt(line.high / line.low):.2f}x" if line.low > 0 else "any size"
    else:
        smallest = f"{100 * (line.high - line.low) / 2:.1f} points"
    return f": no difference shown, less than {smallest} could not be seen"


def _ratio(line: ComparisonRow) -> str:
    return f"{line.value:.2f}x{_bounds(line.low, line.high, digits=2)}"


def _bounds(low: float | None, high: float | None, digits: int = 1) -> str:
    return "" if low is None or high is None else f" [{low:.{digits}f}, {high:.{digits}f}]"
