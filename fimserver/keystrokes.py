"""Measured latencies from a keystroke to a single-line answer on this machine, by model, kept in a file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from fimserver.paths import data_path

FILE = "keystrokes.json"


def measured_ms(device: str) -> Mapping[str, float]:
    """Return median milliseconds by card name on ``cpu`` or ``cuda``, for the measured models."""
    known = _read().get(device, {})
    return {name: float(ms) for name, ms in known.items()} if isinstance(known, dict) else {}


def keep_ms(device: str, name: str, ms: float) -> None:
    """Store a measurement instead of the previous one."""
    known = _read()
    known[device] = dict(measured_ms(device)) | {name: round(ms, 1)}
    path = data_path(FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.write_text(json.dumps(known, indent=1), "utf-8")
    new.replace(path)


def _read() -> dict[str, object]:
    try:
        known = json.loads(data_path(FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
