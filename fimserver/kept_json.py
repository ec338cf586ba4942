"""JSON files that can be made again (costs, hashes, cards): read leniently, written atomically."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_kept(path: Path) -> dict[str, Any]:
    """Return the object in a file; empty if the file is missing, damaged or not an object."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_kept(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a file atomically. Ignores errors: the contents can be made again at the next start."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(value), "utf-8")
        part.replace(path)
    except OSError:
        pass
