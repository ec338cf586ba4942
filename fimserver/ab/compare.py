"""A whole comparison: opens items and arms, runs them, and writes the report."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from fimserver import __version__
from fimserver.ab.analysis.analysis import analyse
from fimserver.ab.arms.arm import Runner, settings_of_arm, without_token
from fimserver.ab.arms.open import open_arms
from fimserver.ab.items.spans import Cut, cut_spans, read_spans
from fimserver.ab.items.traces import Trace, read_trace
from fimserver.ab.replay.keystrokes import rows as rows_of_replay
from fimserver.ab.replay.keystrokes import timelines
from fimserver.ab.replay.outcome import Replayed
from fimserver.ab.replay.replay import replay
from fimserver.ab.report.environment import environment
from fimserver.ab.report.page import write_page
from fimserver.ab.report.table import progress
from fimserver.ab.run import Journal, RunPlan, fingerprint, run
from fimserver.ab.schema import SIDES, Arm, PairedRow, Report, Side, Timeline, read_report
from fimserver.commands.render import make_console
from fimserver.settings import Settings

JOURNAL = "unfinished.jsonl"
# Hosts of a replay are not needed afterwards, and a replay must not count in the user's statistics.
REPLAY_ENV = {"FIMSERVER_IDLE_EXIT_MINUTES": "0.5", "FIMSERVER_STATS": "off"}


class ItemSource(NamedTuple):
    """Where items come from: a repository, a file of spans, or traces."""

    repo: Path | None
    spans: Path | None
    traces: tuple[Path, ...]
    limit: int
    seed: int
    warm: bool = False
    speed: float = 1.0

    def facts(self) -> dict[str, Any]:
        """Describe the items for the report."""
        kind = "repo" if self.repo else "spans" if self.spans else "trace"
        names = [path.resolve().name for path in (self.repo, self.spans, *self.traces) if path]
        facts: dict[str, Any] = {"kind": kind, "name": ", ".join(names), "seed": self.seed}
        return facts | ({"speed": self.speed} if self.traces else {"limit": self.limit, "warm": self.warm})


class ComparisonRequest(NamedTuple):
    """A requested comparison. ``flags``: settings of both arms."""

    arms: tuple[str, str]
    source: ItemSource
    flags: Mapping[str, Any]
    out: Path
    command: str


def compare(asked: ComparisonRequest) -> Report:
    """Run or resume a comparison and write report.json and report.html. Raises ``FimError``."""
    asked.out.mkdir(parents=True, exist_ok=True)
    report = _replays(asked) if asked.source.traces else _spans(asked)
    write(report, asked.out)
    return report


def write(report: Report, folder: Path, *, keep: bool = False) -> None:
    """Write report.html, and report.json unless ``keep``."""
    folder.mkdir(parents=True, exist_ok=True)
    analysis = analyse(report)
    if not keep:
        data = report.model_dump(mode="json", by_alias=True) | {"aggregates": dataclasses.asdict(analysis)}
        (folder / "report.json").write_text(
            json.dumps(data, ensure_ascii=False, allow_nan=False, indent=1) + "\n", "utf-8"
        )
    write_page(report, analysis, folder / "report.html")


def _spans(asked: ComparisonRequest) -> Report:
    source = asked.source
    cut = _cut(source)
    arms = open_arms(asked.arms, dict(asked.flags))
    facts = {
        "arms": [arm.arm.model_dump() for arm in arms],
        "source": source.facts(),
        "spans": [s.item for s in cut.spans],
    }
    journal = Journal(asked.out / JOURNAL, fingerprint(facts))
    rows = list[PairedRow]()
    finished = False
    with progress(make_console(stderr=True)) as bar:
        task = bar.add_task("spans", total=len(cut.spans) * (2 if source.warm else 1))
        try:
            for row in run(RunPlan(cut.spans, source.seed, source.warm), arms, journal):
                rows.append(row)
                bar.update(task, completed=len(rows))
            finished = True
        except KeyboardInterrupt:
            pass
    for arm in arms:
        arm.close()
    if finished:
        journal.close()
    return _report(asked, _of(arms), dict(cut.skipped), rows=tuple(rows), finished=finished)


def _cut(source: ItemSource) -> Cut:
    if source.repo:
        return cut_spans(source.repo, source.limit, source.seed)
    assert source.spans
    return read_spans(source.spans, source.limit)


def _of(arms: tuple[Runner, Runner]) -> dict[Side, Arm]:
    return {side: arm.arm for side, arm in zip(SIDES, arms, strict=True)}


def _replays(asked: ComparisonRequest) -> Report:
    """Replay each trace with both arms; which arm goes first alternates."""
    traces = {path.name: read_trace(path) for path in asked.source.traces}
    settings = {
        side: settings_of_arm(spec, dict(asked.flags)) for side, spec in zip(SIDES, asked.arms, strict=True)
    }
    rows, lines = _earlier(asked)
    finished = False
    kept = {row.group for row in rows}
    with progress(make_console(stderr=True)) as bar, tempfile.TemporaryDirectory(prefix="fim") as folder:
        task = bar.add_task("replays", total=2 * len(traces), completed=2 * len(kept))
        try:
            for number, (name, trace) in enumerate(traces.items()):
                if name in kept:
                    continue
                done: dict[Side, Replayed] = {}
                order = SIDES if number % 2 == 0 else SIDES[::-1]
                for side in order:
                    done[side] = _replay(trace, settings[side], Path(folder, side), asked.source.speed)
                    bar.advance(task)
                rows += rows_of_replay(name, done["a"], done["b"], order[0])
                lines += timelines(name, done["a"], done["b"])
            finished = True
        except KeyboardInterrupt:
            pass
    arms: dict[Side, Arm] = {
        side: _arm(without_token(spec), settings[side], rows, side)
        for side, spec in zip(SIDES, asked.arms, strict=True)
    }
    return _report(asked, arms, {}, rows=tuple(rows), timelines=tuple(lines), finished=finished)


def _earlier(asked: ComparisonRequest) -> tuple[list[PairedRow], list[Timeline]]:
    """Return rows and timelines of an unfinished run of the same comparison."""
    path = asked.out / "report.json"
    if not path.exists():
        return [], []
    old = read_report(path)
    same = [arm.spec for arm in old.arms.values()] == [
        without_token(spec) for spec in asked.arms
    ] and old.source == asked.source.facts()
    return (list(old.rows), list(old.timelines)) if same and not old.finished else ([], [])


def _replay(trace: Trace, settings: Settings, runtime: Path, speed: float) -> Replayed:
    """Replay with a separate host for the arm, so that its cache does not hold the other arm's prompts."""
    runtime.mkdir(mode=0o700, exist_ok=True)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in _changed_settings(settings).items()]
    command = [sys.executable, "-m", "fimserver.cli", *flags]
    return replay(
        trace,
        command,
        speed=speed,
        env=REPLAY_ENV | {"XDG_RUNTIME_DIR": str(runtime), "FIMSERVER_TOKEN": settings.token},
    )


def _changed_settings(settings: Settings) -> dict[str, Any]:
    changed: dict[str, Any] = settings.model_dump(
        mode="json", exclude_unset=True, exclude={"record", "idle_exit_minutes", "token"}
    )
    return changed


def _arm(spec: str, settings: Settings, rows: list[PairedRow], side: Side) -> Arm:
    """Return the arm of a replay, with the models that its answers name."""
    results = [getattr(row, side) for row in rows]
    models = {result.route: result.model for result in results if result.model}
    return Arm(spec=spec, models=models, version=__version__, settings=_changed_settings(settings))


def _report(asked: ComparisonRequest, arms: dict[Side, Arm], skipped: dict[str, int], **parts: Any) -> Report:
    return Report(
        version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=asked.command,
        source=asked.source.facts() | ({"skipped": skipped} if skipped else {}),
        environment=environment(),
        arms=arms,
        notes=tuple(_notes(arms)),
        **parts,
    )


def _notes(arms: dict[Side, Arm]) -> Iterator[str]:
    """Yield warnings about the arms."""
    versions = {side: arm.version for side, arm in arms.items()}
    if len(set(versions.values())) > 1:
        yield f"the arms are different versions of fimserver: a {versions['a']}, b {versions['b']}"
