"""Paths of this user's sockets, locks, logs and data.

Hosts with different models or devices have different sockets, so that windows share a host only if they need
the same one.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import platformdirs

from fimserver import __version__
from fimserver.errors import InputError
from fimserver.settings import ENGINE_SETTINGS, HOST_SETTINGS, Settings

MAX_SOCKET_BYTES = 103  # of a path; macOS has the lower limit, 104 with the NUL at the end
LONGEST_NAME = "host-0123456789ab.sock"
MODELS_CHANGED = "models-changed"


def runtime_folder() -> Path:
    """Return a folder that only this user can enter, with a path short enough for a socket.

    It is the system's runtime folder, or else one in the folder of temporary files. Raises ``InputError`` if
    none can be used.
    """
    problem = ""
    for folder in _runtime_folders():
        if len(os.fsencode(folder / LONGEST_NAME)) > MAX_SOCKET_BYTES:
            problem = problem or f"{folder} is too long for a socket"
            continue
        try:
            return private_folder(folder)
        except InputError as error:
            problem = problem or str(error)
        except OSError as error:
            problem = problem or f"{folder}: {error.strerror or error}"
    raise InputError(f"{problem}: set XDG_RUNTIME_DIR to a folder of yours")


def _runtime_folders() -> Iterator[Path]:
    """Yield candidates, best first; lazily, as ``gettempdir`` writes a file.

    An XDG_RUNTIME_DIR that does not exist yet is used: platformdirs would skip it.
    """
    given = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    with warnings.catch_warnings(action="ignore"):  # platformdirs warns where it falls back
        usual = given / "fimserver" if given.is_absolute() else platformdirs.user_runtime_path("fimserver")
    name = f"fimserver-{os.getuid()}"
    yield usual
    yield Path(tempfile.gettempdir()) / name
    yield Path("/tmp") / name  # noqa: S108 - checked by the caller


def private_folder(folder: Path) -> Path:
    """Make a folder, and its missing parents, that only this user may enter.

    Raises ``InputError`` if it belongs to another user, ``OSError`` if it cannot be made.
    """
    for missing in reversed([each for each in (folder, *folder.parents) if not each.exists()]):
        with suppress(FileExistsError):
            missing.mkdir(mode=0o700)
    found = folder.lstat()
    parent = folder.parent.stat()
    if found.st_uid != os.getuid() or parent.st_uid not in {0, os.getuid()}:
        raise InputError(f"{folder} belongs to another user")
    if not stat.S_ISDIR(found.st_mode):
        raise InputError(f"{folder} is not a folder")
    if stat.S_IMODE(found.st_mode) != 0o700:
        folder.chmod(0o700)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{folder} cannot be written to")
    return folder


def socket_path(settings: Settings) -> Path:
    """Return the socket of the host that serves these settings."""
    return runtime_folder() / f"host-{_digest(settings, HOST_SETTINGS)}.sock"


def _digest(settings: Settings, names: tuple[str, ...]) -> str:
    meant = settings.model_dump_json(include=set(names))
    return hashlib.sha256(f"{__version__} {meant}".encode()).hexdigest()[:12]


def data_path(name: str) -> Path:
    """Return a path in the user's data folder, which may not exist yet."""
    return platformdirs.user_data_path("fimserver") / name


def data_problem() -> str:
    """Why nothing can be kept in the data folder, or an empty string."""
    folder = data_path("")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"{folder}: {error.strerror or error}: set XDG_DATA_HOME to a folder of yours"


def models_stamp() -> int:
    """Return a stamp that changes when models are added or removed on this machine."""
    try:
        return data_path(MODELS_CHANGED).stat().st_mtime_ns
    except OSError:
        return 0


def models_changed() -> None:
    """Tell running hosts that the installed models have changed."""
    path = data_path(MODELS_CHANGED)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(os.getpid()), "ascii")


def latency_path(settings: Settings) -> Path:
    """Return the file of measured costs for these settings on this machine."""
    return data_path(f"latency-{_digest(settings, ENGINE_SETTINGS)}.json")


def log_path(name: str) -> Path:
    """Return a path in the user's log folder. If the folder cannot be made, opening the file fails later."""
    folder = platformdirs.user_log_path("fimserver")
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder / name


def log_problem(name: str) -> str:
    """Return why a log file cannot be written, or an empty string."""
    try:
        with log_path(name).open("ab"):
            return ""
    except OSError as error:
        return f"{log_path(name)}: {error.strerror or error}: set XDG_STATE_HOME to a folder of yours"
