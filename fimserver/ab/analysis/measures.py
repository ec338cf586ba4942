"""Measures of a comparison: times, scores and outcomes of results, over all items and by strata."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fimserver.ab.schema import PairedRow, Result
from fimserver.lengths import LABELS, bucket_of
from fimserver.reasons import Reason

ALL = "all"  # the stratum of all items
Better = Literal["higher", "lower", ""]
Outcome = Literal["shown", "late", "cancelled", "empty", "error", "withheld"]

_ENDINGS: Mapping[str, Outcome] = {
    Reason.STALE: "late",
    Reason.DEADLINE: "late",
    Reason.UNFINISHED: "late",
    Reason.CANCELLED: "cancelled",
    Reason.SUPERSEDED: "cancelled",
    Reason.EMPTY: "empty",
    Reason.BLANK: "empty",
    Reason.BAD_INPUT: "error",
    Reason.LOADING: "error",
    Reason.NO_MODEL: "error",
    Reason.NO_HOST: "error",
    Reason.OVERLOADED: "error",
    Reason.PAUSED: "error",
    Reason.HOST_FAILED: "error",
    Reason.REFUSED: "error",
    Reason.OUT_OF_MEMORY: "error",
    Reason.NON_FINITE: "error",
    Reason.FAILED: "error",
    Reason.AWAY: "error",
    Reason.BAD_KEY: "error",
    Reason.WRONG_MODEL: "error",
    Reason.NO_FIM: "error",
    Reason.TOO_LONG: "error",
    Reason.GARBLED: "error",
    **dict.fromkeys(
        (
            *(
                Reason.OFF,
                Reason.NOT_OPEN,
                Reason.DIRTY,
                Reason.TOO_LARGE,
                Reason.EXCLUDED,
                Reason.GENERATED,
                Reason.MID_WORD,
            ),
            *(
                Reason.CONTROL,
                Reason.DUPLICATE,
                Reason.REPETITION,
                Reason.SYNTAX,
                Reason.NO_OP,
                Reason.POPUP,
                Reason.REJECTED,
            ),
            Reason.CUT_OFF,
        ),
        "withheld",
    ),
}


class Measure(NamedTuple):
    """A number of a result. If ``read`` returns ``None``, the pair is left out."""

    metric: str
    label: str
    unit: str  # "share" is between 0 and 1
    better: Better
    read: Callable[[PairedRow, Result], float | None]
    tested: bool = False  # by the sign test


def outcome(result: Result) -> Outcome:
    """Return the outcome of a request. A middle that was not shown in time is late."""
    if result.shown and result.text:
        return "shown"
    return _ENDINGS.get(result.reason, "late" if result.text else "empty")


def answered(result: Result) -> bool:
    """Whether the times are those of an answer: errors and cancelled requests have none."""
    return outcome(result) not in {"error", "cancelled"}


def _time(name: Literal["first_ms", "answer_ms"]) -> Callable[[PairedRow, Result], float | None]:
    def read(_: PairedRow, result: Result) -> float | None:
        value: float = getattr(result, name)
        return value if value > 0 and answered(result) else None

    return read


def _share_of_text(_: PairedRow, result: Result) -> float | None:
    return min(1.0, result.prefix_chars / len(result.text)) if result.text else None


def _share_of_gold(row: PairedRow, result: Result) -> float | None:
    return min(1.0, result.prefix_chars / len(row.gold)) if row.gold else None


def _ended(wanted: Outcome) -> Callable[[PairedRow, Result], float]:
    return lambda _, result: float(outcome(result) == wanted)


TIMES = (
    Measure("first_ms", "first text", "ms", "lower", _time("first_ms")),
    Measure("answer_ms", "answer", "ms", "lower", _time("answer_ms")),
)
MEANS = (
    Measure("exact", "exact", "share", "higher", lambda _, r: float(r.exact), tested=True),
    Measure(
        "first_line", "first line right", "share", "higher", lambda _, r: float(r.first_line), tested=True
    ),
    Measure(
        "prefix_chars",
        "right from the start",
        "characters",
        "higher",
        lambda _, r: float(r.prefix_chars),
        tested=True,
    ),
    Measure("kept_share", "right from the start, of the suggestion", "share", "higher", _share_of_text),
    Measure("gold_share", "right from the start, of the middle", "share", "higher", _share_of_gold),
    Measure("similarity", "edit similarity", "share", "higher", lambda _, r: r.similarity, tested=True),
    Measure(
        "parses",
        "parses",
        "share",
        "higher",
        lambda _, r: None if r.parses is None else float(r.parses),
        tested=True,
    ),
    Measure("saved_keys", "saved keys", "keys", "higher", lambda _, r: r.saved_keys, tested=True),
    Measure("shown", "shown", "share", "higher", _ended("shown"), tested=True),
    Measure("late", "late or stale", "share", "lower", _ended("late")),
    Measure("cancelled", "cancelled or superseded", "share", "", _ended("cancelled")),
    Measure("empty", "empty", "share", "", _ended("empty")),
    Measure("error", "errors", "share", "lower", _ended("error")),
    Measure("withheld", "withheld by a filter", "share", "", _ended("withheld")),
    Measure("forwards", "forward passes", "passes", "", lambda _, r: float(r.forwards)),
    Measure("tokens", "tokens", "tokens", "", lambda _, r: float(r.tokens)),
    Measure("cancel_ms", "cancel to idle", "ms", "lower", lambda _, r: r.cancel_ms),
)
YES_OR_NO = frozenset(
    {"exact", "first_line", "parses", "shown", "late", "cancelled", "empty", "error", "withheld"}
)


def strata(rows: Sequence[PairedRow]) -> Iterator[tuple[str, list[PairedRow]]]:
    """Yield all rows, then strata by kind, length bucket and language.

    Warm rows are a separate stratum if there are cold ones.
    """
    whole = [row for row in rows if not row.warm] or list(rows)
    yield ALL, whole
    if len(whole) < len(rows):
        yield "warm", [row for row in rows if row.warm]
    axes: dict[str, Callable[[PairedRow], str]] = {
        "kind": lambda row: row.kind,
        "bucket": lambda row: LABELS[bucket_of(row.lexemes)],
        "language": lambda row: row.language,
    }
    for axis, of in axes.items():
        names = sorted(
            {of(row) for row in whole} - {""},
            key=lambda name: (LABELS.index(name) if name in LABELS else 0, name),
        )
        if len(names) > 1:
            yield from ((f"{axis}:{name}", [row for row in whole if of(row) == name]) for name in names)


def pairs(
    measure: Measure, rows: Sequence[PairedRow]
) -> tuple[tuple[str, ...], NDArray[np.float64], NDArray[np.float64]]:
    """Return groups and both arms' columns for the rows where both have a number."""
    read = [(row.group, measure.read(row, row.a), measure.read(row, row.b)) for row in rows]
    full = [(group, a, b) for group, a, b in read if a is not None and b is not None]
    return (
        tuple(pair[0] for pair in full),
        np.array([pair[1] for pair in full]),
        np.array([pair[2] for pair in full]),
    )
