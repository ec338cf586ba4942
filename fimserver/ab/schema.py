"""Format of a comparison on disk: one JSON file that can be analysed again without a model.

Tables and pages can be made from it again; files of the same two arms can be merged.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fimserver.errors import InputError, first_problem
from fimserver.types import Route

SCHEMA = 1
Side = Literal["a", "b"]
SIDES: tuple[Side, ...] = ("a", "b")


class _ReportModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Arm(_ReportModel):
    """One of the two configurations."""

    spec: str  # as given by the user: "dllm", "ar,drafter=none", "http://gpu-box:8765"
    models: dict[Route, str] = Field(default_factory=dict)
    version: str = ""  # of the fimserver that ran it
    settings: dict[str, Any] = Field(default_factory=dict)


class Result(_ReportModel):
    """Result of one arm on one item. Scores compare with the gold middle; the caller measures times."""

    text: str
    route: Route
    model: str
    reason: str  # of ``reasons.Reason``
    why: str = ""  # why this route was chosen
    tokens: int = 0
    forwards: int = 0
    passes: int = 0  # forwards after the prefill
    fresh_tokens: int = 0  # uncached rows of the prompt
    prefill_ms: float = 0.0
    first_ms: float = 0.0  # request to the first text; of a trace, key to shown
    answer_ms: float = 0.0  # request to the whole answer
    shown: bool = True  # of a trace: it reached the editor before the next key and passed the filters
    exact: bool = False  # equals the gold middle, except for white space at the end
    first_line: bool = False  # the first line equals that of the gold middle
    prefix_chars: int = 0  # length of the common prefix with the gold middle
    similarity: float = 0.0  # difflib's ratio of the stripped texts
    parses: bool | None = None  # whether the enclosing function parses; ``None``: unknown
    saved_keys: float = 0.0  # see ``metrics.saved_keys``
    cancel_ms: float | None = None  # cancel to idle, if measured
    predicted_ms: dict[Route, float] = Field(default_factory=dict)


class PairedRow(_ReportModel):
    """One item with the results of both arms."""

    item: str  # unique in a file
    group: str  # cluster of the bootstrap: a file, a task, a trace
    kind: str  # line_rest, line, block, body; of a trace: request
    language: str = ""
    lexemes: int = 0  # of the gold middle
    first: Side = "a"  # the arm that went first
    warm: bool = False  # the prompt was in the cache
    before: str = ""  # the end of the prefix, for readers of the report
    after: str = ""  # the start of the suffix
    gold: str = ""
    at_ms: float = 0.0  # of a trace: time of the request
    a: Result
    b: Result


class Mark(_ReportModel):
    """An event of a replay: a key, a request, an answer, a suggestion shown or accepted."""

    at_ms: float
    what: Literal["key", "request", "answer", "shown", "accept"]
    chars: int = 0


class Timeline(_ReportModel):
    """Replay of one trace with one arm."""

    group: str
    side: Side
    marks: tuple[Mark, ...]
    keys: int = 0
    cancelled: int = 0
    superseded: int = 0


class Report(_ReportModel):
    """A whole comparison. ``finished`` is false for a run that was interrupted and can be resumed."""

    schema_: Annotated[int, Field(alias="schema")] = SCHEMA
    version: str
    created: str  # ISO 8601
    command: str
    source: dict[str, Any]  # kind (repo, spans, trace), name, seed, limit, number of skipped items by reason
    environment: dict[str, Any]
    arms: dict[Side, Arm]
    rows: tuple[PairedRow, ...] = ()
    timelines: tuple[Timeline, ...] = ()
    finished: bool = True
    notes: tuple[str, ...] = ()

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


def read_report(path: Path) -> Report:
    """Read a report from disk. Raises ``InputError``."""
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise InputError(f"{path} is not JSON: give a report.json that `fimserver ab` wrote") from None
    found = data.get("schema") if isinstance(data, dict) else None
    if found != SCHEMA:
        raise InputError(
            f"{path} has schema {found!r}, this fimserver reads {SCHEMA}: make it again with `fimserver ab`"
        )
    try:
        return Report.model_validate({name: value for name, value in data.items() if name != "aggregates"})
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error, 'report')}") from None


def merge(reports: Sequence[Report]) -> Report:
    """Merge reports of the same arms; duplicate items count once. Raises ``InputError``."""
    first, *others = reports
    specs = {side: arm.spec for side, arm in first.arms.items()}
    for other in others:
        if {side: arm.spec for side, arm in other.arms.items()} != specs:
            raise InputError(
                f"reports of different arms cannot be merged: {specs} and"
                f" {[a.spec for a in other.arms.values()]}"
            )
    rows = {row.item: row for report in reports for row in report.rows}
    lines = {(line.group, line.side): line for report in reports for line in report.timelines}
    notes = dict.fromkeys(note for report in reports for note in report.notes)
    return first.model_copy(
        update={
            "rows": tuple(rows.values()),
            "timelines": tuple(lines.values()),
            "finished": all(report.finished for report in reports),
            "notes": tuple(notes),
        }
    )
