"""Knows where the sockets, locks and logs of this user are. Knows nothing of what is in them.

Hosts with different models or devices have different sockets, so that windows share a host only where they mean the same.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import platformdirs

from fimserver import __version__
from fimserver.errors import InputError
from fimserver.settings import ENGINE_SETTINGS, HOST_SETTINGS, Settings


def runtime_folder() -> Path:
    """A folder that only this user can enter. Raises ``InputError`` where someone else owns it."""
    folder = platformdirs.user_runtime_path("fimserver")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    owners = folder.stat().st_uid, folder.parent.stat().st_uid
    if owners[0] != os.getuid() or owners[1] not in {0, os.getuid()}:
        raise InputError(f"{folder} belongs to another user: set XDG_RUNTIME_DIR to a folder of yours")
    folder.chmod(0o700)
    return folder


def socket_path(settings: Settings) -> Path:
    """The socket of the host that serves these settings."""
    return runtime_folder() / f"host-{_digest(settings, HOST_SETTINGS)}.sock"


def _digest(settings: Settings, names: tuple[str, ...]) -> str:
    meant = settings.model_dump_json(include=set(names))
    return hashlib.sha256(f"{__version__} {meant}".encode()).hexdigest()[:12]


def data_path(name: str) -> Path:
    """A file in the user's data folder, which may not exist yet."""
    return platformdirs.user_data_path("fimserver") / name


def latency_path(settings: Settings) -> Path:
    """What the models of these settings have cost on this machine."""
    return data_path(f"latency-{_digest(settings, ENGINE_SETTINGS)}.json")


def log_path(name: str) -> Path:
    """A log file in the user's log folder."""
    folder = platformdirs.user_log_path("fimserver")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder / name
