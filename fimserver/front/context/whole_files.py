"""Whole open files: texts that drafts are copied from. They are in no prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fimserver.front.context.similar_windows import OpenFile
from fimserver.types import Snippet, unix_lines

ALL_CHARS = 64_000  # of all files; they go with every request to a host of this machine
FILE_CHARS = 32_000  # of one


class WholeFiles:
    """Open files of one window without secrets, each read once a version."""

    def __init__(self, mask: Callable[[str], str]) -> None:
        self._mask = mask
        self._texts: dict[str, tuple[int, str]] = {}

    def choose(self, files: Iterable[OpenFile], is_late: Callable[[], bool]) -> tuple[Snippet, ...]:
        """The beginnings of ``files``, in order, as many as fit and are ready in time."""
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
        """The document was closed."""
        self._texts.pop(uri, None)

    def _text(self, file: OpenFile) -> str:
        version, text = self._texts.get(file.uri, (None, ""))
        if version != file.version:
            text = self._mask(_beginning(file.lines))
            self._texts[file.uri] = (file.version, text)
        return text


def _beginning(lines: Iterable[str]) -> str:
    """Whole lines of at most ``FILE_CHARS`` characters."""
    taken = []
    left = FILE_CHARS
    for line in lines:
        left -= len(line)
        if left < 0:
            break
        taken.append(line)
    return unix_lines("".join(taken))
