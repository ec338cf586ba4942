"""Token file: one ``NAME TOKEN`` per line, read again when it changes, so that no restart is needed."""

from __future__ import annotations

import hmac
import logging
import re
from pathlib import Path

from fimserver.errors import InputError

log = logging.getLogger("fimserver.host")
_LINE = re.compile(r"([!-~]+)[ \t]+([!-~]+)")


class TokenFile:
    """Users of a host by their tokens.

    Raises ``InputError`` if the file cannot be used. If it becomes unusable later, that is logged and the
    last good version stays in effect, so that a mistake while editing locks nobody out.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = _stamp(path)
        self._names = read_tokens(path)

    def user(self, token: str) -> str | None:
        """Return the name of the user with this token, or ``None``."""
        self._refresh()
        given = token.encode("utf-8", "surrogateescape")
        names = [name for known, name in self._names.items() if hmac.compare_digest(given, known.encode())]
        return names[0] if names else None

    def _refresh(self) -> None:
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._names = read_tokens(self._path)
        except InputError as error:
            log.error("%s; the tokens read before are kept", error)  # noqa: TRY400


def read_tokens(path: Path) -> dict[str, str]:
    """Read the names of users by token; ignores blank lines and comments (#). Raises ``InputError``."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--token-file {path}: {getattr(error, 'strerror', None) or 'it is not text'}"
        ) from None
    names: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not (match := _LINE.fullmatch(line.strip())):
            raise InputError(f"--token-file {path}, line {number}: write NAME TOKEN, both without blanks")
        if match[2] in names or match[1] in names.values():
            raise InputError(f"--token-file {path}, line {number}: name or token has a line above already")
        names[match[2]] = match[1]
    if not names:
        raise InputError(f"--token-file {path} has no line: write NAME TOKEN for each user")
    return names


def _stamp(path: Path) -> tuple[int, int, int]:
    """Return a stamp that changes when the file is written or replaced; zeros if it does not exist."""
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return found.st_mtime_ns, found.st_size, found.st_ino
