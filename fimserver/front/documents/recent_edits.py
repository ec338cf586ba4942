"""Recent edits: the regions of open documents that the user changed last.

A region is a document and two line numbers; its text is read when it is needed. So a keystroke costs the same
in every file, and a snippet shows the current text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from fimserver.front.documents.mirror import Document
from fimserver.types import Snippet

MAX_REGIONS = 8
MAX_SNIPPETS = 4
MERGE_LINES = 3  # edits at most this far apart share a region
REGION_LINES = 16  # maximum; an edit beyond it begins a new region
AROUND_LINES = 2


@dataclass(frozen=True)
class _Region:
    """Changed lines ``first`` to ``last`` (inclusive) of a document."""

    document: Document
    first: int
    last: int

    def shown(self) -> range:
        """Lines to show: the changed ones and a few around them."""
        return range(
            max(0, self.first - AROUND_LINES), min(len(self.document.lines), self.last + AROUND_LINES + 1)
        )


class RecentEdits:
    """Regions that were changed last, the newest last."""

    def __init__(self) -> None:
        self._regions: list[_Region] = []
        self._heights: dict[str, int] = {}  # lines of each document after its last edit

    def observe(self, document: Document, line: int) -> None:
        """Note a change at ``line``, its first line before the change. O(1).

        Compares the number of lines with the last call to move the regions below.
        """
        height = len(document.lines)
        grown = height - self._heights.get(document.uri, height)
        self._heights[document.uri] = height
        new = _Region(document, line, line + min(max(0, grown), REGION_LINES - 1))
        others: list[_Region] = []
        for old in self._regions:
            moved = _moved(old, line, grown) if old.document.uri == document.uri else old
            union = _union(moved, new)
            if union is None:
                others.append(moved)
            else:
                new = union
        self._regions = [*others, new][-MAX_REGIONS:]

    def snippets(
        self, exclude_uri: str, exclude_lines: range | None, name_of: Callable[[str], str | None]
    ) -> tuple[Snippet, ...]:
        """Return the current text of the newest few regions, the newest last.

        ``exclude_lines`` of the document ``exclude_uri`` are already in the prompt; ``None`` means all lines.
        ``name_of`` returns the path to show for a URI, or ``None`` for a document that must not be read.
        """
        found: list[Snippet] = []
        for region in reversed(self._regions):
            if len(found) == MAX_SNIPPETS:
                break
            uri = region.document.uri
            lines = region.shown()
            is_known = uri == exclude_uri and (exclude_lines is None or _overlap(lines, exclude_lines))
            name = None if is_known or region.document.dirty or region.document.too_large else name_of(uri)
            text = "" if name is None else "".join(region.document.lines[lines.start : lines.stop])
            if name is not None and text.strip():
                found.append(Snippet(name, text))
        return tuple(reversed(found))

    def forget(self, uri: str) -> None:
        """Forget a document that was closed."""
        self._regions = [region for region in self._regions if region.document.uri != uri]
        self._heights.pop(uri, None)


def _moved(region: _Region, line: int, grown: int) -> _Region:
    """Move a region after ``grown`` lines were inserted (or, if negative, deleted) at ``line``."""
    if not grown or region.last < line:
        return region
    first = region.first if region.first <= line else max(line, region.first + grown)
    return replace(region, first=first, last=max(first, min(region.last + grown, first + REGION_LINES - 1)))


def _union(old: _Region, new: _Region) -> _Region | None:
    """Merge two regions; ``None`` if they are too far apart or would be too long together."""
    if old.document is not new.document:
        return None
    first = min(old.first, new.first)
    last = max(old.last, new.last)
    is_close = new.first - MERGE_LINES <= old.last and old.first <= new.last + MERGE_LINES
    return _Region(new.document, first, last) if is_close and last - first < REGION_LINES else None


def _overlap(left: range, right: range) -> bool:
    return left.start < right.stop and right.start < left.stop
