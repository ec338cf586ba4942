"""Statistics as lines of text and as an HTML page."""

from __future__ import annotations

import base64
import hashlib
import math
from datetime import datetime
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from fimserver.host.stats.summary import Difference, RouteComparison, RouteTotals, Summary

REFRESH_S = 10
HEADINGS = (
    "route",
    "language",
    "lexemes",
    "shown",
    "accepted",
    "in part",
    "kept / 100 keys",
    "p50",
    "p90",
    "p95",
    "p99",
)
WORDS = frozenset({"route", "language"})  # the others are numbers
UNITS = (
    "Times in ms, from the request to the answer, of answers that a model gave. Kept: accepted or typed"
    " through."
)
NONE = "\u2013"
FOLDER = Path(__file__).parent


def cells(line: RouteTotals) -> tuple[str, ...]:
    """Return the cells of a row under ``HEADINGS``."""
    rate = NONE if line.per_100_keys is None else f"{line.per_100_keys:.1f}"
    times = [f"{ms:.0f}" for ms in line.ms] or [NONE] * 4
    return (
        line.route,
        line.language,
        line.bucket,
        str(line.shown),
        _of(line.full, line),
        _of(line.partly, line),
        rate,
        *times,
    )


def _short(row: tuple[str, ...]) -> tuple[str, ...]:
    """Drop language and length from a row."""
    return row[:1] + row[3:]


def _of(count: int, line: RouteTotals) -> str:
    return f"{count / line.shown:.0%}" if line.shown else NONE


def sentences(comparison: RouteComparison) -> tuple[str, ...]:
    """Describe the result of a comparison."""
    how = {"blocks": "by turns", "shadow": "by turns, the other route unseen"}[comparison.mode]
    said = [f"Comparison {how}: {comparison.answers} answers."]
    if kept := comparison.kept_chars:
        said.append(
            f"Kept characters an answer after 60 s, dllm less ar: {kept.value:+.2f} {_bounds(kept, '+.2f')}."
        )
    if ratio := comparison.times_as_long:
        said.append(f"Time to the answer, dllm in times of ar: {ratio.value:.2f} {_bounds(ratio, '.2f')}.")
    return tuple(said)


def _bounds(found: Difference, form: str) -> str:
    if found.low is None or found.high is None:
        return f"[not known yet: {found.blocks} blocks]"
    return f"[{found.low:{form}}, {found.high:{form}}], 95 % at all looks together, {found.blocks} blocks"


def page(summary: Summary, *, refreshes: bool = False) -> str:
    """Render one HTML page without external resources; with ``refreshes`` it reloads every ten seconds."""
    return _template().render(
        summary=summary,
        made=datetime.fromtimestamp(summary.made).astimezone(),
        tables=[
            ("Routes", _short(HEADINGS), [_short(cells(line)) for line in summary.routes]),
            ("By language and expected length", HEADINGS, [cells(line) for line in summary.lines]),
        ],
        words=WORDS,
        sentences=sentences,
        units=UNITS,
        style=_style(),
        policy=policy(),
        refresh=REFRESH_S if refreshes else 0,
        most=max((nothing.count for nothing in summary.nothing), default=1),
        scale=_scale,
    )


def policy() -> str:
    """Content-Security-Policy that allows only our own style and an empty icon."""
    digest = base64.b64encode(hashlib.sha256(_style().encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    )


def _scale(found: Difference, middle: float) -> tuple[float, float, float, float] | None:
    """Positions on a scale from 0 to 100 of: low, value, high, and no difference (``middle``)."""
    if found.low is None or found.high is None:
        return None
    reach = 1.1 * max(abs(found.low - middle), abs(found.high - middle), math.ulp(middle) or 1e-9)
    places = [50 + 50 * (place - middle) / reach for place in (found.low, found.value, found.high, middle)]
    return places[0], places[1], places[2], places[3]


@cache
def _style() -> str:
    return (FOLDER / "stats.css").read_text("utf-8").strip()


@cache
def _template() -> Template:
    loader = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return loader.get_template("stats.html.j2")
