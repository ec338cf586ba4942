"""Run of a comparison: runs two arms on the same items, and resumes an interrupted run.

Items are interleaved: both arms finish an item before either starts the next, in an order drawn at random for
each item. Every row is written to disk before the next item.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fimserver.ab.analysis.metrics import score
from fimserver.ab.arms.arm import ArmAnswer, Runner
from fimserver.ab.items.parsing import parses
from fimserver.ab.items.spans import Span
from fimserver.ab.schema import PairedRow, Result, Side
from fimserver.errors import FimError, InputError
from fimserver.lengths import lexemes
from fimserver.reasons import Reason
from fimserver.types import unix_lines

WARM_UP = 5  # items that run first without being counted
CANCEL_EVERY = 10  # on every tenth item both arms are also cancelled half way
SHOWN_CHARS = 400  # of the text around a span, for readers of the report
FORWARD: tuple[Side, Side] = ("a", "b")


@dataclass(frozen=True)
class RunPlan:
    """Items to run, and whether also with a warm cache."""

    spans: Sequence[Span]
    seed: int
    warm: bool  # run each item also with its prompt in the cache


def run(plan: RunPlan, arms: tuple[Runner, Runner], journal: Journal) -> Iterator[PairedRow]:
    """Yield rows as they are finished, those of an earlier run of the same plan first.

    Raises ``FimError`` if an arm fails.
    """
    done = {row.item: row for row in journal.rows}
    yield from done.values()
    jobs = [(span, warm) for span in plan.spans for warm in ((False, True) if plan.warm else (False,))]
    left = [(span, warm) for span, warm in jobs if _name(span, warm=warm) not in done]
    for span, warm in left[:WARM_UP]:
        for arm in arms:
            arm.fill(span, warm=warm)
    for number, (span, warm) in enumerate(left):
        row = _row(span, arms, plan.seed, warm=warm, cancels=number % CANCEL_EVERY == 0)
        journal.add(row)
        yield row


def _row(span: Span, arms: tuple[Runner, Runner], seed: int, *, warm: bool, cancels: bool) -> PairedRow:
    name = _name(span, warm=warm)
    order = random.Random(f"{seed} {name}").sample(FORWARD, 2)
    results = {side: _result(span, arms[FORWARD.index(side)], warm=warm, cancels=cancels) for side in order}
    return PairedRow(
        item=name,
        group=span.group,
        kind=span.kind,
        language=span.language,
        lexemes=lexemes(span.middle),
        first=order[0],
        warm=warm,
        before=span.prefix[-SHOWN_CHARS:],
        after=span.suffix[:SHOWN_CHARS],
        gold=span.middle,
        **results,
    )


def _result(span: Span, arm: Runner, *, warm: bool, cancels: bool) -> Result:
    try:
        filled = arm.fill(span, warm=warm)
    except InputError:
        raise
    except FimError as error:
        raise FimError(
            f"{arm.arm.spec} failed on {span.item}: {error}; run the same command again to resume"
        ) from None
    return result(span, filled, arm.cancel_ms(span, filled.answer_ms / 2) if cancels else None)


def result(span: Span, filled: ArmAnswer, cancel_ms: float | None) -> Result:
    """Score an answer."""
    usage = filled.usage
    scores = score(filled.text, span.middle)
    text = unix_lines(filled.text)
    return Result(
        text=text,
        route=usage.route,
        model=usage.model,
        reason=usage.reason,
        why=usage.decision.why if usage.decision else "",
        tokens=usage.tokens,
        forwards=usage.forwards,
        passes=usage.forwards - usage.prefill.forwards,
        fresh_tokens=usage.prefill.rows,
        prefill_ms=usage.prefill.ms,
        first_ms=filled.first_ms,
        answer_ms=filled.answer_ms,
        shown=bool(text.strip()) and usage.reason is not Reason.EMPTY,
        exact=scores.exact,
        first_line=scores.first_line,
        prefix_chars=scores.prefix_chars,
        similarity=scores.similarity,
        parses=parses(span.language, span.prefix, text, span.suffix, unix_lines(span.middle)),
        saved_keys=scores.saved_keys,
        cancel_ms=cancel_ms,
        predicted_ms=dict(usage.decision.predicted_ms) if usage.decision else {},
    )


def _name(span: Span, *, warm: bool) -> str:
    return f"{span.item}:warm" if warm else span.item


class Journal:
    """Rows on disk, one JSON line each, after a line that identifies their comparison."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self._path = path
        self.rows: list[PairedRow] = _read(path, fingerprint) if path.exists() else []
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"comparison": fingerprint}) + "\n", "utf-8")

    def add(self, row: PairedRow) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(row.model_dump_json() + "\n")

    def close(self) -> None:
        """Delete the journal: all rows are in the report."""
        self._path.unlink(missing_ok=True)


def fingerprint(facts: dict[str, Any]) -> str:
    """Return a hash that identifies a comparison."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _read(path: Path, fingerprint: str) -> list[PairedRow]:
    """Read the rows, without a truncated one. Raises ``InputError`` for another comparison's journal."""
    first, *lines = path.read_text("utf-8").split("\n")
    try:
        same = json.loads(first)["comparison"] == fingerprint
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise InputError(
            f"{path.parent} has an unfinished comparison of something else: give another --out, or delete"
            f" {path}"
        )
    rows = []
    for line in lines:
        try:
            rows.append(PairedRow.model_validate_json(line))
        except ValidationError:
            continue
    if lines and lines[-1]:  # so that the next row does not continue a truncated line
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")
    return rows
