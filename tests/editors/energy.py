"""A language server that reads its power supply from a folder of the test."""

from __future__ import annotations

import sys
from pathlib import Path


def on_battery(folder: Path) -> list[str]:
    """A command that runs it, on a machine whose battery is being discharged, as it knows from the start."""
    supply = folder / "sys/class/power_supply/BAT0"
    supply.mkdir(parents=True)
    (supply / "type").write_text("Battery")
    (supply / "status").write_text("Discharging")
    code = (
        "import pathlib; from fimserver.front import energy; "
        f"energy.SYS = pathlib.Path({str(folder / 'sys')!r}); energy._in_thread = lambda work: work(); "
        "from fimserver.cli import main; main()"
    )
    return [sys.executable, "-c", code]
