"""Process of this user's model host: starts it, restarts it after a crash, gives up after repeated crashes.

All windows share one host and any of them may start it; a lock file decides which process serves.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

from fimserver.paths import log_path, socket_path
from fimserver.reasons import Reason
from fimserver.settings import HOST_SETTINGS, Settings

BACK_OFF_S = (0.0, 1.0, 5.0)  # before the first, second and third restart
DEATHS_WINDOW_S = 180.0
LOST_RACE_S = 1.0  # wait after a child found the lock taken: the host that holds it will listen soon
MAX_LOG_BYTES = 1 << 20
HOST_LOG_HINT = "its log says why, and so does fimserver doctor"


class Child(Protocol):
    """A process that we started."""

    def poll(self) -> int | None:
        """Return its exit code, ``None`` while it runs."""
        ...


class HostProcess:
    """This user's host as seen from one window. Times are seconds of a monotonic clock."""

    def __init__(
        self,
        path: Path,
        spawn: Callable[[], Child],
        serving: Callable[[Path], bool] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self._spawn = spawn
        self._serving = serving or is_serving
        self._clock = clock
        self._child: Child | None = None
        self._was_up = False
        self._deaths: deque[float] = deque(maxlen=len(BACK_OFF_S))
        self._not_before = 0.0
        self.starts = 0
        self.problem = ""  # why the host could not be started, for the user

    def state(self, *, asked: bool = False) -> Reason | None:
        """Return ``None`` if the host listens, else why not; start it if necessary.

        After three deaths only an explicit request (``asked``) starts it again.
        """
        if self._serving(self.path):
            self._was_up = True
            self.problem = ""
            return None
        now = self._clock()
        self._note_deaths(now)
        if asked and self._has_failed(now):
            self._deaths.clear()
        if self._has_failed(now):
            return Reason.HOST_FAILED
        if self._child is None and now >= self._next_start():
            self._start(now)
        return Reason.LOADING if self._child is not None else Reason.NO_HOST

    def _start(self, now: float) -> None:
        self.starts += 1
        try:
            self._child = self._spawn()
        except OSError as error:
            self.problem = f"the model host cannot be started: {error.strerror or type(error).__name__}"
            self._deaths.append(now)

    def _note_deaths(self, now: float) -> None:
        """Count a host that no longer listens, and a child that ended with an error, as a death."""
        code = self._child.poll() if self._child else None
        if code is not None:
            self._child = None
            self._not_before = now + LOST_RACE_S
        if code:
            self.problem = f"the model host ended with exit code {code}: {HOST_LOG_HINT}"
        if self._was_up or code:
            self._deaths.append(now)
            self._was_up = False
            if code is None and self._child is not None and self._child.poll() is None:
                self._child = None  # alive but not listening: another may be started if the lock is free

    def _has_failed(self, now: float) -> bool:
        return len(self._deaths) == len(BACK_OFF_S) and now - self._deaths[0] < DEATHS_WINDOW_S

    def _next_start(self) -> float:
        if not self._deaths:
            return self._not_before
        recent = sum(self._deaths[-1] - death < DEATHS_WINDOW_S for death in self._deaths)
        return self._deaths[-1] + BACK_OFF_S[recent - 1]


def is_serving(path: Path) -> bool:
    """Whether a process of this user listens on a Unix socket."""
    try:
        if path.stat().st_uid != os.getuid():
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(0.2)
            probe.connect(str(path))
    except OSError:
        return False
    return True


def own_hosting(settings: Settings) -> HostProcess:
    """Return the process of the host that serves these settings on this machine."""
    path = socket_path(settings)
    return HostProcess(path, lambda: spawn_host(settings, path))


def spawn_host(settings: Settings, path: Path) -> subprocess.Popen[bytes]:
    """Start a host that outlives this window: it inherits no pipe and does not run in the workspace."""
    with _log_file() as file:
        return subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-P", "-m", "fimserver.cli", "host", "--socket", str(path), *_flags(settings)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd="/",
            start_new_session=True,
        )


def _log_file() -> BinaryIO:
    """Open the host's log, or the null device if it cannot be written: a host can do without a log."""
    log = log_path("host.log")
    try:
        if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
            log.unlink()
        return log.open("ab")
    except OSError:
        return Path(os.devnull).open("ab")


def _flags(settings: Settings) -> list[str]:
    """Return the settings that the host needs, as command-line flags."""
    names = [
        name for name in (*HOST_SETTINGS, "model", "idle_exit_minutes") if name in settings.model_fields_set
    ]
    return [part for name in names for part in (f"--{name.replace('_', '-')}", str(getattr(settings, name)))]
