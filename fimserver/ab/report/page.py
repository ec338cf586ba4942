"""Page of a comparison: one HTML file that needs neither network nor scripts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from fimserver.ab.analysis.analysis import Analysis
from fimserver.ab.analysis.comparison_row import ComparisonRow
from fimserver.ab.analysis.measures import ALL, outcome
from fimserver.ab.analysis.value import Estimate
from fimserver.ab.report import charts
from fimserver.ab.report.table import LEGEND, described, figure, line_of, three
from fimserver.ab.report.visible import visible
from fimserver.ab.schema import SIDES, PairedRow, Report, Side

_PAIRS = 20
_ROWS = 500
_BEFORE_CHARS = 400
_TEXT_CHARS = 1500
_NAME_CHARS = 28
_LABEL_CHARS = 18
_FORESTS = (
    ("answer_ms_ratio", "speed of B relative to A, log scale"),
    ("exact", "B minus A, points"),
    ("chars_per_s_300", "B relative to A, log scale"),
)
_BY_STRATUM = ("answer_ms_ratio", "first_ms_p95", "exact", "kept_share", "saved_keys", "chars_per_s_300")
_COLUMNS = (
    "item",
    "kind",
    "language",
    "lexemes",
    "A, ms",
    "B, ms",
    "A/B",
    "A exact",
    "B exact",
    "A saved keys",
    "B saved keys",
)


@dataclass(frozen=True)
class _Text:
    name: Side
    about: str
    text: Markup


@dataclass(frozen=True)
class _Pair:
    item: str
    about: str
    before: Markup
    gold: Markup
    sides: tuple[_Text, ...]


def write_page(report: Report, analysis: Analysis, path: Path) -> None:
    """Write the HTML file; the same report and analysis give the same bytes."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(
        files("fimserver.ab.report").joinpath("page.html.j2").read_text("utf-8")
    )
    page = template.render(
        **_words(report, analysis), **_numbers(report, analysis), **_pictures(report, analysis)
    )
    path.write_bytes(page.encode("utf-8", "backslashreplace"))


def _words(report: Report, analysis: Analysis) -> dict[str, Any]:
    source = " ".join(str(report.source[name]) for name in ("kind", "name") if name in report.source)
    parts = (
        f"{analysis.n:,} items of {analysis.groups:,} groups",
        source,
        report.created[:10],
        f"fimserver {report.version}",
    )
    return {
        "specs": {side: described(report.arms[side]) for side in SIDES},
        "summary": " \N{MIDDLE DOT} ".join(part for part in parts if part),
        "headline": analysis.headline,
        "notes": list(dict.fromkeys((*report.notes, *analysis.notes))),
        "legend": LEGEND,
        "circumstances": list(_circumstances(report)),
    }


def _circumstances(report: Report) -> Iterator[tuple[str, str]]:
    yield "command", report.command
    yield "made", f"{report.created} by fimserver {report.version}"
    for side in SIDES:
        arm = report.arms[side]
        facts = {"models": arm.models, "version": arm.version, "settings": arm.settings}
        yield (
            side.upper(),
            ", ".join([arm.spec, *(f"{name} {_as_text(value)}" for name, value in facts.items() if value)]),
        )
    for title, facts in (("items", report.source), ("machine", report.environment)):
        yield from ((f"{title}: {name.replace('_', ' ')}", _as_text(value)) for name, value in facts.items())


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _numbers(report: Report, analysis: Analysis) -> dict[str, Any]:
    cold = [row for row in report.rows if not row.warm] or list(report.rows)
    rest = len(report.rows) - _ROWS
    return {
        "whole": [line_of(row) for row in analysis.comparisons if row.stratum == ALL],
        "strata": [
            (rows[0].label, [line_of(row, stratum(row.stratum)) for row in rows])
            for metric in _BY_STRATUM
            if len(rows := [row for row in analysis.comparisons if row.metric == metric]) > 1
        ],
        "regret": list(_regret(analysis)),
        "predictions": [
            (p.side.upper(), p.route, f"{p.n:,}", three(p.p10), three(p.p50), three(p.p90))
            for p in analysis.predictions
        ],
        "pairs": [_pair(row) for row in worst(cold)],
        "item_columns": _COLUMNS,
        "items": [_cells(row) for row in report.rows[:_ROWS]],
        "left_out": (
            f"The first {_ROWS:,} items; {rest:,} more are in report.json and in every number above."
            if rest > 0
            else ""
        ),
    }


def _regret(analysis: Analysis) -> Iterator[tuple[str, str]]:
    found = analysis.regret
    if found is None:
        return
    for side in SIDES:
        estimate: Estimate = getattr(found, side)
        low = three(estimate.low)
        high = three(estimate.high)
        name = side.upper() + ", which chose a route for each item" * (side in found.choosing)
        yield (
            name,
            f"{three(estimate.value)} saved keys an item" + (f" [{low}, {high}]" if low and high else ""),
        )
    yield "a second is worth", f"{three(found.keys_per_s)} saved keys"


def _pictures(report: Report, analysis: Analysis) -> dict[str, Any]:
    specs = {side: report.arms[side].spec for side in SIDES}
    labels = {side: _short(spec, _NAME_CHARS) for side, spec in specs.items()}
    traced = charts.timeline(report.timelines, labels)
    counts = [
        f"{line.side.upper()}: {line.keys:,} keys, {line.cancelled:,} requests cancelled, {line.superseded:,}"
        " superseded"
        for line in report.timelines
        if traced and line.group == traced[0]
    ]
    return {
        "charts": {
            "ecdf": charts.ecdf(report, labels),
            "scatter": charts.scatter(report, labels),
            "value": charts.value_curve(analysis.curve, labels),
            "timeline": traced and traced[1],
        },
        "trace": traced[0] if traced else "",
        "trace_counts": "; ".join(counts),
        "forests": [
            {
                "title": rows[0].label,
                "svg": charts.forest(metric, rows[0].label, axis, _bars(rows), ratio=ratio),
            }
            for metric, axis in _FORESTS
            if (
                rows := [
                    row for row in analysis.comparisons if row.metric == metric and row.value is not None
                ]
            )
            for ratio in [rows[0].effect == "ratio"]
        ],
    }


def _bars(rows: Sequence[ComparisonRow]) -> list[charts.Bar]:
    """Return the bars of a forest plot; shares become points."""
    scale = 100 if rows[0].unit == "share" else 1

    def number(value: float | None) -> float:
        return math.nan if value is None else scale * value

    return [
        charts.Bar(
            _short(stratum(row.stratum), _LABEL_CHARS),
            number(row.value),
            number(row.low),
            number(row.high),
            strong=row.stratum == ALL,
        )
        for row in rows
    ]


def _short(name: str, most: int) -> str:
    """Shorten a name to fit a picture."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def stratum(name: str) -> str:
    """Name of a stratum for readers."""
    axis, _, value = name.partition(":")
    if axis == "bucket":
        return f"{value} lexemes"
    return value.replace("_", " ") if value else {"all": "all items", "warm": "warm caches"}.get(axis, axis)


def _pair(row: PairedRow) -> _Pair:
    keys = row.b.saved_keys - row.a.saved_keys
    ratio = _ratio(row)
    parts = [f"{'B' if keys > 0 else 'A'} saved {_keys(abs(keys))} keys more"] if _keys_apart(row) else []
    if _times_apart(row):
        parts.append(f"{'B' if ratio > 1 else 'A'} was {three(max(ratio, 1 / ratio))}x as fast")
    about = ", ".join([*parts, row.kind.replace("_", " "), f"{row.lexemes:,} lexemes"])
    before = visible(row.before[-_BEFORE_CHARS:])
    return _Pair(
        row.item, about, before, visible(row.gold[:_TEXT_CHARS]), tuple(_text(row, side) for side in SIDES)
    )


def _text(row: PairedRow, side: Side) -> _Text:
    result = getattr(row, side)
    parts = [
        result.route,
        figure(result.answer_ms, "ms"),
        f"{_keys(result.saved_keys)} keys saved",
        outcome(result),
    ]
    parts += ["exact"] * result.exact + [f"cut after {_TEXT_CHARS:,} characters"] * (
        len(result.text) > _TEXT_CHARS
    )
    right = len(result.text) if result.exact else result.prefix_chars
    return _Text(side, ", ".join(part for part in parts if part), visible(result.text[:_TEXT_CHARS], right))


def _cells(row: PairedRow) -> tuple[str, ...]:
    exact = ("yes" if result.exact else "no" for result in (row.a, row.b))
    times = (three(row.a.answer_ms), three(row.b.answer_ms))
    saved = (_keys(row.a.saved_keys), _keys(row.b.saved_keys))
    name = f"{row.item} (warm)" if row.warm else row.item
    return (name, row.kind, row.language, f"{row.lexemes:,}", *times, three(_ratio(row)), *exact, *saved)


def _keys(count: float) -> str:
    return f"{count:,.0f}" if count.is_integer() else three(count)


def worst(rows: Sequence[PairedRow], count: int = _PAIRS) -> list[PairedRow]:
    """Return the pairs that differ most, by saved keys and by answer time in turns."""
    keys = sorted((row for row in rows if _keys_apart(row)), key=_keys_apart, reverse=True)
    wait = sorted((row for row in rows if _times_apart(row)), key=_times_apart, reverse=True)
    turns = chain.from_iterable(zip_longest(keys, wait))
    return list({row.item: row for row in turns if row}.values())[:count]


def _keys_apart(row: PairedRow) -> float:
    apart = abs(row.a.saved_keys - row.b.saved_keys)
    return apart if math.isfinite(apart) else 0.0


def _times_apart(row: PairedRow) -> float:
    return abs(math.log(ratio)) if math.isfinite(ratio := _ratio(row)) else 0.0


def _ratio(row: PairedRow) -> float:
    """Time of A divided by that of B; NaN if one has no time."""
    a = row.a.answer_ms
    b = row.b.answer_ms
    return a / b if math.isfinite(a) and math.isfinite(b) and min(a, b) > 0 else math.nan
