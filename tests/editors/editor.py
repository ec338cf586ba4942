"""The protocol that drivers of real editors implement."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import psutil

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ghost:
    """Ghost text and where it is drawn. ``column`` counts bytes."""

    row: int
    column: int
    text: str

    def within(self, lines: Sequence[str]) -> list[str]:
        """The document as it must be when the ghost text is accepted."""
        line = lines[self.row].encode()
        text = (line[: self.column] + self.text.encode() + line[self.column :]).decode()
        return [*lines[: self.row], *text.split("\n"), *lines[self.row + 1 :]]


def command_line(process: psutil.Process) -> list[str]:
    """The arguments of a process; none where it is ending or gone."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def wait(what: str, ready: Callable[[], Value], seconds: float) -> Value:
    """Poll until ``ready`` gives something true, and return it. Raises ``TimeoutError`` that says ``what``."""
    deadline = time.monotonic() + seconds
    while not (value := ready()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(0.01)
    return value
