"""Store of statistics: one SQLite file of answers, with lengths and hashes instead of text.

A damaged file is renamed and a new one is made; if the file cannot be written, statistics are switched off.
Callers never see an error and never wait for long.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fimserver.events import AnswerRecord, Batch
from fimserver.host.routing.chances import Settled
from fimserver.host.routing.router import KeepCounts
from fimserver.lengths import BUCKETS, LIMITS
from fimserver.paths import data_path
from fimserver.reasons import Reason

log = logging.getLogger("fimserver.host")
SCHEMA = 2
KEEP_DAYS = 400
KEPT_DAYS = 90  # age of the answers that keep rates are computed from
KEPT_S = 30.0  # how long a keep rate is cached
DAY_S = 86400
AGAIN_S = 0.1
BUSY_S = 2.0  # how long a writer waits for another one
DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}

COLUMNS = {
    "session": "TEXT", "number": "INTEGER", "at": "REAL", "document": "TEXT", "language": "TEXT",
    "route": "TEXT",
    "model": "TEXT", "source": "TEXT", "policy": "TEXT", "propensity": "REAL", "bucket": "INTEGER",
    "block": "INTEGER",
    "first": "INTEGER", "reason": "TEXT", "shown": "INTEGER", "fate": "TEXT", "chars": "INTEGER",
    "lexemes": "INTEGER",
    "accepted_chars": "INTEGER", "typed_chars": "INTEGER", "total_ms": "REAL", "ttft_ms": "REAL",
    "prefix_10s": "INTEGER", "kept_10s": "INTEGER", "prefix_60s": "INTEGER", "kept_60s": "INTEGER",
    "shadow_route": "TEXT", "shadow_model": "TEXT", "shadow_reason": "TEXT", "shadow_chars": "INTEGER",
    "shadow_lexemes": "INTEGER", "shadow_total_ms": "REAL", "shadow_ttft_ms": "REAL",
    "shadow_prefix_10s": "INTEGER", "shadow_kept_10s": "INTEGER",
    "shadow_prefix_60s": "INTEGER", "shadow_kept_60s": "INTEGER",
    "confidence": "REAL",
}  # fmt: skip
CREATE = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS answers ({", ".join(map(" ".join, COLUMNS.items()))},
PRIMARY KEY (session, number)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS answers_at ON answers (at);
CREATE INDEX IF NOT EXISTS answers_kept ON answers
(route, model, at, bucket, fate, reason, chars, lexemes, accepted_chars, typed_chars);
CREATE TABLE IF NOT EXISTS counts (hour INTEGER, name TEXT, language TEXT, count INTEGER,
PRIMARY KEY (hour, name, language));
PRAGMA user_version = {SCHEMA};
COMMIT;
"""
PUT = f"INSERT OR REPLACE INTO answers VALUES ({', '.join(':' + name for name in COLUMNS)})"  # noqa: S608
# Version 1 lacks this column. A new column is added at the end, as in ``COLUMNS``.
UPGRADE = "ALTER TABLE answers ADD COLUMN confidence REAL"
SETTLED = """
SELECT confidence, accepted_chars + typed_chars > 0 FROM answers
WHERE route = ? AND model = ? AND at > ? AND shown AND fate != '' AND confidence NOT NULL
ORDER BY at DESC LIMIT 500
"""
COUNT = "INSERT INTO counts VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count"
LENGTHS = " ".join(f"WHEN lexemes <= {limit} THEN {bucket}" for bucket, limit in enumerate(LIMITS))
# Answers with these reasons count as not kept, in the bucket of the expected length.
USELESS = (
    Reason.EMPTY,
    Reason.BLANK,
    Reason.CONTROL,
    Reason.DUPLICATE,
    Reason.REPETITION,
    Reason.SYNTAX,
    Reason.UNFINISHED,
    Reason.CUT_OFF,
)
KEPT = f"""
SELECT CASE WHEN chars = 0 THEN bucket {LENGTHS} ELSE {len(LIMITS)} END AS length,
COUNT(*), SUM(MIN(1.0, (accepted_chars + typed_chars) * 1.0 / MAX(1, chars))) FROM answers
WHERE route = ? AND model = ? AND at > ? AND length NOT NULL
AND (fate != '' OR (chars = 0 AND reason IN ({", ".join(f"'{reason}'" for reason in USELESS)})))
GROUP BY length
"""  # noqa: S608 - our own numbers and names


class EmptyError(sqlite3.OperationalError):
    """The file has no tables yet."""


def stats_path() -> Path:
    """Path of this user's statistics file."""
    return data_path("stats.sqlite")


class Stats:
    """Statistics of a host; other hosts of the user may write the same file. Thread-safe.

    Without a path nothing is stored. ``problem``: why nothing is stored, or empty.
    """

    def __init__(self, path: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.problem = "" if path else "statistics are off"
        self.missed = 0  # batches that could not be written
        self._clock = clock
        self._lock = threading.Lock()
        self._pruned = 0.0
        self._kept: dict[tuple[str, str], tuple[float, tuple[KeepCounts, ...]]] = {}
        self._settled: dict[tuple[str, str], tuple[float, tuple[Settled, ...]]] = {}

    def add(self, batch: Batch) -> None:
        """Write a batch of events. May wait for the disk: do not call it on the event loop."""
        with self._lock:
            if self.path is None or self.problem:
                return
            for is_last in (False, True):
                try:
                    self._write(self.path, batch)
                except (sqlite3.Error, OSError) as error:
                    if self._is_mended(self.path, error, is_last=is_last):
                        continue
                    self.missed += 1
                return

    def kept(self, route: str, model: str) -> tuple[KeepCounts, ...]:
        """Return the number of settled answers and their kept shares, by bucket. Cached for ``KEPT_S``."""
        now = self._clock()
        at, known = self._kept.get((route, model), (-KEPT_S, ()))
        if now - at >= KEPT_S:
            known = self._look_up(route, model, now)
            self._kept[route, model] = (now, known)
        return known

    def settled(self, route: str, model: str) -> tuple[Settled, ...]:
        """Return the latest settled suggestions. Cached for ``KEPT_S``."""
        now = self._clock()
        at, known = self._settled.get((route, model), (-KEPT_S, ()))
        if now - at >= KEPT_S:
            rows = self._rows(SETTLED, (route, model, now - KEPT_DAYS * DAY_S))
            known = tuple(Settled(confidence, bool(used)) for confidence, used in rows)
            self._settled[route, model] = (now, known)
        return known

    def _rows(self, query: str, values: Sequence[object]) -> list[Any]:
        """Return the rows of a query, or none if the file cannot be read."""
        if self.path is None:
            return []
        try:
            with reading(self.path) as base:
                return base.execute(query, values).fetchall()
        except sqlite3.Error:
            return []

    def _look_up(self, route: str, model: str, now: float) -> tuple[KeepCounts, ...]:
        rows = self._rows(KEPT, (route, model, now - KEPT_DAYS * DAY_S))
        if not rows:
            return ()
        found = {bucket: KeepCounts(answers, kept) for bucket, answers, kept in rows}
        return tuple(found.get(bucket, KeepCounts(0.0, 0.0)) for bucket in BUCKETS)

    def _write(self, path: Path, batch: Batch) -> None:
        now = self._clock()
        hour = int(self._clock() // 3600)
        counts = [(hour, "keys", language, count) for language, count in batch.keys.items()]
        if batch.dropped:
            counts.append((hour, "dropped", "", batch.dropped))
        with contextlib.closing(_open(path)) as base:
            base.execute("BEGIN IMMEDIATE")
            base.executemany(PUT, [row(batch.session, answer) for answer in batch.answers])
            base.executemany(COUNT, counts)
            if now - self._pruned > DAY_S:
                base.execute("DELETE FROM answers WHERE at < ?", (now - KEEP_DAYS * DAY_S,))
                base.execute("DELETE FROM counts WHERE hour < ?", (hour - KEEP_DAYS * 24,))
                self._pruned = now
            base.execute("COMMIT")

    def _is_mended(self, path: Path, error: Exception, *, is_last: bool) -> bool:
        """Handle an error and return whether to try again. Renames a damaged file."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in BUSY and not is_last:  # SQLite's timeout does not cover creating the file or its log
            time.sleep(AGAIN_S)
            return True
        if code in BUSY:
            if not self.missed:
                log.warning("the statistics are in use elsewhere: some answers are not counted")
            return False
        if code in DAMAGED and not is_last:
            with contextlib.suppress(OSError):
                _put_aside(path, int(self._clock()))
                return True
        what = getattr(error, "sqlite_errorname", "") or getattr(error, "strerror", "") or error
        self.problem = f"{path.name}: {what}"
        log.warning("statistics are off: %s", self.problem)
        return False


def _put_aside(path: Path, now: int) -> None:
    aside = path.with_name(f"{path.name}.damaged-{now}")
    path.rename(aside)
    for end in ("-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    log.warning("the statistics were damaged: they are in %s now, and begin anew", aside.name)


def _open(path: Path) -> sqlite3.Connection:
    """Open the file for one transaction; create it if missing. Raises ``sqlite3.Error`` or ``OSError``."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    base = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
    try:
        base.execute("PRAGMA synchronous = NORMAL")
        version = _version(base)
        if version == 1:
            base.executescript(f"BEGIN IMMEDIATE; {UPGRADE}; PRAGMA user_version = {SCHEMA}; COMMIT;")
        elif version != SCHEMA:
            base.execute("PRAGMA journal_mode = WAL")
            base.executescript(CREATE)
    except BaseException:
        base.close()
        raise
    return base


def _version(base: sqlite3.Connection) -> int:
    """Return the schema version, 0 for a new file. Raises ``sqlite3.NotSupportedError`` for a newer one."""
    version: int = base.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA:
        raise sqlite3.NotSupportedError("a newer fimserver wrote it")
    return version


@contextlib.contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the file read-only. Raises ``sqlite3.Error``, also if it is missing."""
    with contextlib.closing(
        sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", timeout=0.2, uri=True)
    ) as base:
        if not _version(base):
            raise EmptyError(f"{path.name} is empty")
        yield base


def row(session: str, answer: AnswerRecord) -> dict[str, Any]:
    """Convert an answer to a row of the table."""
    flat = {"session": session, **_flat(answer.model_dump(mode="json", exclude={"shadow"}))}
    shadow = answer.shadow.model_dump(mode="json") if answer.shadow else {}
    flat |= {f"shadow_{name}": value for name, value in _flat(shadow).items()}
    return {name: flat.get(name) for name in COLUMNS}


def _flat(told: dict[str, Any]) -> dict[str, Any]:
    looks = {name: told.get(f"after_{name}") or {} for name in ("10s", "60s")}
    stands = {
        f"{kind}_{name}": look.get(f"{kind}_chars")
        for name, look in looks.items()
        for kind in ("prefix", "kept")
    }
    return told | stands
