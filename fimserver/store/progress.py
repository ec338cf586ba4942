"""Progress of a download: a bar with size, speed and remaining time, or plain lines without a terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from fimserver.store.sizes import size_text

LINE_S = 10.0  # between lines, without a terminal


class ProgressBar:
    """A ``Watch`` that draws on standard error. A context manager: leaving it removes the bar."""

    def __init__(self, console: Console | None = None) -> None:
        """``console``: where to draw."""
        self._console = console or Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
        self._bar = Progress(
            BarColumn(24),
            TextColumn("{task.percentage:3.0f}%"),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None
        self._lines = _Lines(self._console)

    def __enter__(self) -> Self:
        """Return itself. Nothing is drawn before the size is known."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bar."""
        self._bar.stop()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._console.print(line)

    def start(self, total_bytes: int) -> None:
        """Begin a new bar, instead of that of an earlier source."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = None
        self._total = total_bytes
        self._lines = _Lines(self._console)

    def at(self, done_bytes: int) -> None:
        """Move the bar. The first call sets its start: bytes from before do not count for the speed."""
        if self._task is None:
            self._task = self._bar.add_task("", total=self._total or None, completed=done_bytes)
            self._bar.start()
        self._bar.update(self._task, completed=done_bytes)
        if not self._console.is_terminal:
            self._lines.at(done_bytes, self._total)


class _Lines:
    """Prints a line every few seconds, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._first: tuple[float, int] | None = None
        self._last_s = time.monotonic()

    def at(self, done_bytes: int, total_bytes: int) -> None:
        now = time.monotonic()
        self._first = self._first or (now, done_bytes)
        if now - self._last_s < LINE_S:
            return
        self._last_s = now
        speed = (done_bytes - self._first[1]) / max(now - self._first[0], 1e-3)
        left = f", {(total_bytes - done_bytes) / speed:.0f} s left" if speed > 0 and total_bytes else ""
        self._console.print(
            f"{size_text(done_bytes)} of {size_text(total_bytes)}, {size_text(speed)}/s{left}"
        )
