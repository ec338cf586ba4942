"""Recent edits: the regions of open documents that the user changed last.

A region is a document and two line numbers; its text is read when it is needed. So a keystroke costs the same
in every file, and a snippet shows the text as it is now.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from fimserver.front.documents.mirror import Document
from fimserver.types import Snippet

MAX_REGIONS = 8
MAX_SNIPPETS = 4
MERGE_LINES = 3  # edits that are no further apart are one region
REGION_LINES = 16  # a region does not grow beyond; the edit begins a new one
AROUND_LINES = 2


@dataclass(frozen=True)
class _Region:
    """Lines ``first`` to ``last`` of a document, both changed."""

    document: Document
    first: int
    last: int

    def shown(self) -> range:
        """The lines to show: the changed ones and a few around them."""
        return range(
            max(0, self.first - AROUND_LINES), min(len(self.document.lines), self.last + AROUND_LINES + 1)
        )


class RecentEdits:
    """The last regions that were changed, the newest last."""

    def __init__(self) -> None:
        self._regions: list[_Region] = []
        self._heights: dict[str, int] = {}  # lines of each document after its last edit

    def observe(self, document: Document, line: int) -> None:
        """To be called after a change at ``line`` (its first line, as the editor counted before it). O(1).

        By how many lines the document grew is found by comparing with the last call; regions below move
        along.
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
        """The newest few regions as they read now, the newest last.

        ``exclude_lines`` of the document ``exclude_uri`` are known to the model already; ``None`` means all
        of it. ``name_of`` gives the path to show for a uri, or ``None`` for a document that must not be read.
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
        """The document was closed: its regions are gone."""
        self._regions = [region for region in self._regions if region.document.uri != uri]
        self._heights.pop(uri, None)


def _moved(region: _Region, line: int, grown: int) -> _Region:
    """Where a region is after ``grown`` lines came in at ``line``, or went."""
    if not grown or region.last < line:
        return region
    first = region.first if region.first <= line else max(line, region.first + grown)
    return replace(region, first=first, last=max(first, min(region.last + grown, first + REGION_LINES - 1)))


def _union(old: _Region, new: _Region) -> _Region | None:
    """Both as one, where they are close and do not become too long."""
    if old.document is not new.document:
        return None
    first = min(old.first, new.first)
    last = max(old.last, new.last)
    is_close = new.first - MERGE_LINES <= old.last and old.first <= new.last + MERGE_LINES
    return _Region(new.document, first, last) if is_close and last - first < REGION_LINES else None


def _overlap(left: range, right: range) -> bool:
    return left.start < right.stop and right.start < left.stop
