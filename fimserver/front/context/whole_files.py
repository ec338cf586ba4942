"""Whole open files, from which the n-gram drafter copies. They are not part of the prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fimserver.front.context.similar_windows import OpenFile
from fimserver.types import Snippet, unix_lines

ALL_CHARS = 64_000  # of all files; sent with every request to the local host
FILE_CHARS = 32_000  # of one file


class WholeFiles:
    """Open files of one window without secrets, each read once per version."""

    def __init__(self, mask: Callable[[str], str]) -> None:
        self._mask = mask
        self._texts: dict[str, tuple[int, str]] = {}

    def choose(self, files: Iterable[OpenFile], is_late: Callable[[], bool]) -> tuple[Snippet, ...]:
        """Return the beginnings of ``files``, in order, as many as fit and can be read in time."""
        found = []
        left = ALL_CHARS
        for file in files:
            if left <= 0 or is_late():
                break
            text = self._text(file)[:left]
            if text.strip():
                found.append(Snippet(file.name, text))
            left -= len(text)
        return tuple(found)

    def forget(self, uri: str) -> None:
        """Forget a document that was closed."""
        self._texts.pop(uri, None)

    def _text(self, file: OpenFile) -> str:
        version, text = self._texts.get(file.uri, (None, ""))
        if version != file.version:
            text = self._mask(_beginning(file.lines))
            self._texts[file.uri] = (file.version, text)
        return text


def _beginning(lines: Iterable[str]) -> str:
    """First whole lines of a file, at most ``FILE_CHARS`` characters."""
    taken = []
    left = FILE_CHARS
    for line in lines:
        left -= len(line)
        if left < 0:
            break
        taken.append(line)
    return unix_lines("".join(taken))
