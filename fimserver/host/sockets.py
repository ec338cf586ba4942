"""Sockets of a host: one Unix socket with a lock that makes it the only one, or a TCP address."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from fimserver.errors import InputError
from fimserver.paths import private_folder

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
MAX_PORT = 65_535


class UnixSocket:
    """The socket of this user's host. Only the file that this process made is ever removed.

    A logout or a cleaner of temporary files may remove it while the host runs; ``recovered`` binds again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = -1
        self._bound: tuple[int, int] | None = None  # device and inode of the file that we made

    def acquire(self) -> bool:
        """Take the lock; false if another host has it. Raises ``InputError`` if the folder cannot be used."""
        try:
            private_folder(self.path.parent)
            lock = os.open(self._lock_path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unusable(error) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = lock
        return True

    def bind(self) -> socket.socket:
        """Bind a socket that only this user may use, replacing one that a dead host left.

        Raises ``InputError``.
        """
        self.path.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            listener = bound(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), str(self.path))
        except OSError as error:
            raise self._unusable(error) from None
        finally:
            os.umask(mask)
        self._bound = _identity(self.path)
        return listener

    @property
    def is_intact(self) -> bool:
        """Whether the file that we made is still there."""
        return self._bound is not None and _identity(self.path) == self._bound

    def recovered(self) -> socket.socket | None:
        """Return a new socket in place of a removed one, or ``None`` if another host serves by now."""
        try:
            has_lock = _identity(self._lock_path) == _identity(self._lock) or self.acquire()
            return self.bind() if has_lock else None
        except (InputError, OSError):
            return None

    def close(self) -> None:
        """Remove the socket if this process made it, and release the lock."""
        if self.is_intact:
            self.path.unlink(missing_ok=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @property
    def _lock_path(self) -> Path:
        return self.path.with_suffix(".lock")

    def _unusable(self, error: OSError) -> InputError:
        return InputError(f"{self.path}: {error.strerror or error}: set XDG_RUNTIME_DIR to a folder of yours")


def _identity(file: Path | int) -> tuple[int, int] | None:
    with suppress(OSError):
        found = os.fstat(file) if isinstance(file, int) else file.stat()
        return found.st_dev, found.st_ino
    return None


def bound(listener: socket.socket, address: Any) -> socket.socket:
    """The socket, bound. Raises ``OSError`` and leaves nothing open."""
    try:
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def try_socket(path: Path) -> None:
    """Bind a socket beside ``path``, and remove it.

    Raises ``InputError`` where a host could not listen there.
    """
    probe = UnixSocket(path.with_name(f"try-{os.getpid()}.sock"))
    try:
        private_folder(path.parent)
        probe.bind().close()
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror or error}: set XDG_RUNTIME_DIR to a folder of yours"
        ) from None
    finally:
        probe.close()


def parse_address(address: str) -> tuple[str, int]:
    """Name and port of ``HOST:PORT``, ``:PORT`` or ``PORT`` (loopback). Raises ``InputError``."""
    name, _, port = address.rpartition(":")
    if not (port.isascii() and port.isdecimal() and int(port) <= MAX_PORT):
        raise InputError(f"--listen {address!r}: give HOST:PORT, for example 127.0.0.1:8765")
    return name.strip("[]") or "127.0.0.1", int(port)


def bind_tcp(address: str) -> tuple[socket.socket, str]:
    """A socket for an address, and the host's name. Raises ``InputError``."""
    name, port = parse_address(address)
    try:
        family, kind, proto, _, where = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return bound(listener, where), name.lower()
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"--listen {address}: {getattr(error, 'strerror', None) or 'not the name of a machine'}"
        ) from None


def own_names(name: str) -> frozenset[str]:
    """Names in a Host header that mean this machine, where it listens on ``name``."""
    everywhere = (
        {socket.gethostname().lower(), socket.getfqdn().lower()} if _is_every_address(name) else set()
    )
    return LOOPBACK | {name} | everywhere


def urls(listener: socket.socket, name: str) -> tuple[str, ...]:
    """Return URLs for clients on this machine, and for others if it listens on every address."""
    port = listener.getsockname()[1]
    if not _is_every_address(name):
        return (f"http://{_in_url(name)}:{port}",)
    local = "[::1]" if listener.family == socket.AF_INET6 else "127.0.0.1"
    return f"http://{local}:{port}", f"http://{socket.gethostname().lower()}:{port}"


def _in_url(name: str) -> str:
    return f"[{name}]" if ":" in name else name


def _is_every_address(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_unspecified
    except ValueError:
        return False
