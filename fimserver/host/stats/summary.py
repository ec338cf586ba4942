"""Summary of the statistics by route, language and length, and the result of a live comparison. Reads only.

Times are measured in the front, from request to answer, for shown answers of a model (not from memory).
Keystrokes are counted per language only, so all rows of a language refer to the same keys.
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from fimserver.confidence_sequence import TimeBlock, block_differences, running_interval
from fimserver.events import PROPENSITY
from fimserver.host.stats.store import DAY_S, EmptyError, reading
from fimserver.lengths import LABELS
from fimserver.reasons import EXPLANATIONS, Reason
from fimserver.types import ROUTES

SHARES = (0.5, 0.9, 0.95, 0.99)
ALPHA = 0.05
OTHER = "other"  # languages without a name of ours
MEMORY = "memory"  # answers that came from memory
Mode = Literal["blocks", "shadow"]
MODES: tuple[Mode, ...] = ("blocks", "shadow")

ANSWERS = """
SELECT route, language, bucket, fate, accepted_chars + typed_chars,
CASE WHEN source = 'model' THEN total_ms END
FROM answers WHERE at > ? AND shown
"""
REASONS = (
    "SELECT reason, COUNT(*) FROM answers WHERE at > ? AND NOT shown AND chars = 0 GROUP BY reason"
    " ORDER BY 2 DESC, 1"
)
COUNTS = (
    "SELECT name, language, SUM(count) FROM counts WHERE hour >= ? GROUP BY name, language ORDER BY 3 DESC"
)
TURNS = """
SELECT route, AVG(kept_60s), AVG(CASE WHEN source = 'model' THEN log_ms(total_ms) END), COUNT(*)
FROM answers WHERE at > ? AND policy = ? AND block > 0 AND NOT first AND shown AND kept_60s NOT NULL
GROUP BY document, block ORDER BY MIN(at)
"""
PAIRS = """
SELECT AVG(CASE WHEN route = 'dllm' THEN kept_60s - shadow_kept_60s ELSE shadow_kept_60s - kept_60s END)
FROM answers WHERE at > ? AND policy = 'shadow' AND block > 0 AND NOT first AND shown
AND kept_60s NOT NULL AND shadow_kept_60s NOT NULL
GROUP BY document, block ORDER BY MIN(at)
"""


class _SummaryModel(BaseModel):
    model_config = ConfigDict(frozen=True)


class RouteTotals(_SummaryModel):
    """Shown answers of one route; an empty name means all. ``ms``: percentiles for ``SHARES``."""

    route: str
    language: str = ""
    bucket: str = ""
    shown: int = 0
    full: int = 0
    partly: int = 0
    kept_chars: int = 0
    per_100_keys: float | None = None
    ms: tuple[float, ...] = ()


class Nothing(_SummaryModel):
    """How often nothing was shown, for one reason."""

    reason: str
    count: int
    explanation: str


class Difference(_SummaryModel):
    """A difference with its 95 % confidence sequence; bounds are ``None`` with too few answers."""

    value: float
    low: float | None
    high: float | None
    blocks: int

    def mapped(self, function: Callable[[float], float]) -> Difference:
        """Transform the interval by an increasing function."""
        bounds = [None if bound is None else function(bound) for bound in (self.low, self.high)]
        return Difference(value=function(self.value), low=bounds[0], high=bounds[1], blocks=self.blocks)


class RouteComparison(_SummaryModel):
    """dllm against ar: difference in kept characters per shown answer, and ratio of times."""

    mode: Mode
    answers: int
    kept_chars: Difference | None
    times_as_long: Difference | None


class Summary(_SummaryModel):
    """Everything that a table or a page shows."""

    days: float
    made: float  # Unix seconds
    keys: dict[str, int] = {}
    routes: tuple[RouteTotals, ...] = ()
    lines: tuple[RouteTotals, ...] = ()
    nothing: tuple[Nothing, ...] = ()
    comparisons: tuple[RouteComparison, ...] = ()
    dropped: int = 0  # answers that a window could not send
    problem: str = ""

    @property
    def is_empty(self) -> bool:
        return not self.lines and not self.nothing


class ShownAnswer(NamedTuple):
    """One shown answer."""

    route: str
    language: str
    bucket: int | None
    fate: str
    kept_chars: int
    ms: float | None


def summary(path: Path | None, days: float, problem: str = "") -> Summary:
    """Summarise the last ``days``. If the store cannot be read, the summary is empty with a problem."""
    now = time.time()
    if path is None or not path.exists():
        return Summary(days=days, made=now, problem=problem)
    try:
        with reading(path) as base:
            return _summary(base, days, now, problem)
    except EmptyError:
        return Summary(days=days, made=now, problem=problem)
    except sqlite3.Error as error:
        return Summary(days=days, made=now, problem=f"{path.name} cannot be read: {error}")


def _summary(base: sqlite3.Connection, days: float, now: float, problem: str) -> Summary:
    since = now - days * DAY_S
    rows = [ShownAnswer(*found) for found in base.execute(ANSWERS, (since,))]
    counts = list(base.execute(COUNTS, (int(since // 3600),)))
    keys = {language or OTHER: count for name, language, count in counts if name == "keys"}
    nothing = [
        Nothing(reason=reason, count=n, explanation=_explained(reason))
        for reason, n in base.execute(REASONS, (since,))
    ]
    compared = (comparison(base, mode, since) for mode in MODES)
    return Summary(
        days=days,
        made=now,
        keys=keys,
        routes=tuple(lines(rows, keys, lambda row: (row.route or MEMORY, "", ""))),
        lines=tuple(
            lines(rows, keys, lambda row: (row.route or MEMORY, row.language or OTHER, _label(row.bucket)))
        ),
        nothing=tuple(nothing),
        comparisons=tuple(found for found in compared if found),
        dropped=sum(count for name, _, count in counts if name == "dropped"),
        problem=problem,
    )


def _explained(reason: str) -> str:
    return EXPLANATIONS[Reason(reason)] if reason in EXPLANATIONS else ""


def _label(bucket: int | None) -> str:
    return "" if bucket is None else LABELS[bucket]


def lines(
    rows: Iterable[ShownAnswer],
    keys: Mapping[str, int],
    group_of: Callable[[ShownAnswer], tuple[str, str, str]],
) -> Iterator[RouteTotals]:
    """Yield one line per group (route, language, bucket), in order."""
    groups: defaultdict[tuple[str, str, str], list[ShownAnswer]] = defaultdict(list)
    for row in rows:
        groups[group_of(row)].append(row)
    for (route, language, bucket), found in sorted(groups.items(), key=lambda item: _order(*item[0])):
        kept = sum(row.kept_chars for row in found)
        typed = keys.get(language, 0) if language else sum(keys.values())
        yield RouteTotals(
            route=route,
            language=language,
            bucket=bucket,
            shown=len(found),
            full=sum(row.fate == "full" for row in found),
            partly=sum(row.fate == "partly" for row in found),
            kept_chars=kept,
            per_100_keys=100 * kept / typed if typed else None,
            ms=percentiles([row.ms for row in found if row.ms is not None]),
        )


def _order(route: str, language: str, bucket: str) -> tuple[int, str, int]:
    routes = (*ROUTES, MEMORY)
    return (
        routes.index(route) if route in routes else len(routes),
        language,
        LABELS.index(bucket) if bucket else -1,
    )


def percentiles(values: Sequence[float]) -> tuple[float, ...]:
    """Percentiles of ``values`` for ``SHARES``, by nearest rank; empty without values."""
    ordered = sorted(values)
    return tuple(ordered[math.ceil(share * len(ordered)) - 1] for share in SHARES) if ordered else ()


def comparison(base: sqlite3.Connection, mode: Mode, since: float) -> RouteComparison | None:
    """Return the result of a comparison so far; ``None`` if there was none.

    One value per document and block: the answers of a block are not independent.
    """
    base.create_function("log_ms", 1, lambda ms: math.log(max(ms, 1.0)), deterministic=True)
    turns = list(base.execute(TURNS, (since, mode)))
    if not turns:
        return None
    kept = [(route, chars) for route, chars, _, _ in turns]
    logs = [(route, log_ms) for route, _, log_ms, _ in turns if log_ms is not None]
    if mode == "shadow":
        difference = _difference([chars for (chars,) in base.execute(PAIRS, (since,))])
    else:
        difference = _difference(block_differences(_blocks(kept)))
    ratio = _difference(block_differences(_blocks(logs)))
    return RouteComparison(
        mode=mode,
        answers=sum(count for *_, count in turns),
        kept_chars=difference,
        times_as_long=ratio and ratio.mapped(math.exp),
    )


def _blocks(turns: Iterable[tuple[str, float]]) -> Iterator[TimeBlock]:
    for route, value in turns:
        yield TimeBlock("b" if route == "dllm" else "a", value, PROPENSITY)


def _difference(values: Iterable[float]) -> Difference | None:
    found = running_interval(values, ALPHA)
    if not found.count:
        return None
    bounds = [None if math.isinf(bound) else bound for bound in (found.low, found.high)]
    return Difference(value=found.value, low=bounds[0], high=bounds[1], blocks=found.count)
