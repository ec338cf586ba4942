"""Energy: whether the machine runs on battery or saves power (Linux, macOS), read in the background."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

Power = Literal["mains", "battery", "saving"]
READ_EVERY_S = 30.0
PMSET_S = 2.0
SYS = Path("/sys")


class Energy:
    """Power state of this machine. Reading it may take a while, so the last known state is returned."""

    def __init__(
        self,
        read: Callable[[], Power] | None = None,
        clock: Callable[[], float] = time.monotonic,
        run: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        self._read = read or read_power
        self._clock = clock
        self._run = run or _in_thread
        self._power: Power = "mains"
        self._read_s: float | None = None

    @property
    def power(self) -> Power:
        """The last known power state; ``mains`` before the first reading and if the system has none."""
        if self._read_s is None or self._clock() - self._read_s >= READ_EVERY_S:
            self.refresh()
        return self._power

    def refresh(self) -> None:
        """Read the power state again, in the background."""
        self._read_s = self._clock()
        self._run(self._update)

    def _update(self) -> None:
        try:
            self._power = self._read()
        except (OSError, ValueError, subprocess.SubprocessError):
            self._power = "mains"


def _in_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="energy", daemon=True).start()


def read_power() -> Power:
    """Return the power state of this machine."""
    if sys.platform == "darwin":
        return from_pmset(_pmset("batt"), _pmset())
    return from_sysfs(SYS)


def from_sysfs(root: Path) -> Power:
    """Return the power state on Linux, from the platform profile and the power supplies.

    Batteries of peripherals such as a mouse do not count.
    """
    if _text(root / "firmware/acpi/platform_profile") in {"low-power", "quiet"}:
        return "saving"
    supplies = list((root / "class/power_supply").glob("*"))
    if any(_text(supply / "type") != "Battery" and _text(supply / "online") == "1" for supply in supplies):
        return "mains"
    own = [
        supply
        for supply in supplies
        if _text(supply / "type") == "Battery" and _text(supply / "scope") != "Device"
    ]
    return "battery" if any(_text(supply / "status") == "Discharging" for supply in own) else "mains"


def from_pmset(batt: str, settings: str) -> Power:
    """Return the power state on macOS, from the output of ``pmset -g batt`` and ``pmset -g``."""
    fields = (line.split() for line in settings.splitlines())
    if ["lowpowermode", "1"] in fields:
        return "saving"
    return "battery" if "'Battery Power'" in batt else "mains"


def _pmset(*topic: str) -> str:
    command = ["/usr/bin/pmset", "-g", *topic]
    return subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, timeout=PMSET_S, check=True
    ).stdout


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace").strip()
    except OSError:
        return ""
