"""JSON files that can be made again (costs, hashes, cards): read leniently, written atomically.

Processes that change the same file take a lock beside it, so that each keeps the entries of the others.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Mapping
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
    with contextlib.suppress(OSError):
        _make_folder(path)
        _replace(path, value)


def change_kept(path: Path, key: str, change: Callable[[Any], Any]) -> None:
    """Replace an entry of a file by ``change`` of it (``None`` if it is missing). Ignores errors of files."""
    with contextlib.suppress(OSError):
        _make_folder(path)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known = read_kept(path)
            _replace(path, known | {key: change(known.get(key))})


def _make_folder(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)


def _replace(path: Path, value: Mapping[str, Any]) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(value), "utf-8")
    part.replace(path)
