"""Notebooks: which documents are cells of one notebook, and in which order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fimserver.front.documents.mirror import Document

CELL_CHARS = 8 * 1024  # of other cells, before and after


@dataclass(frozen=True)
class Cell:
    """A cell: the URI of its document and whether it holds code."""

    uri: str
    is_code: bool


class Notebooks:
    """Open notebooks and the order of their cells."""

    def __init__(self) -> None:
        self._cells: dict[str, list[Cell]] = {}
        self._notebook_of: dict[str, str] = {}

    def open(self, notebook: str, cells: Sequence[Cell]) -> None:
        self._cells[notebook] = list(cells)
        self._notebook_of |= {cell.uri: notebook for cell in cells}

    def splice(self, notebook: str, start: int, delete: int, cells: Sequence[Cell]) -> None:
        """Replace ``delete`` cells from ``start`` on. Ignores an unknown notebook."""
        row = self._cells.get(notebook)
        if row is None:
            return
        for gone in row[start : start + delete]:
            self._notebook_of.pop(gone.uri, None)
        row[start : start + delete] = cells
        self._notebook_of |= {cell.uri: notebook for cell in cells}

    def close(self, notebook: str) -> list[str]:
        """Close a notebook and return the URIs of its cells."""
        gone = [cell.uri for cell in self._cells.pop(notebook, [])]
        for uri in gone:
            self._notebook_of.pop(uri, None)
        return gone

    def holds(self, uri: str) -> bool:
        """Whether a document is a cell of an open notebook."""
        return uri in self._notebook_of

    def cells_of(self, notebook: str) -> list[str]:
        """URIs of the cells of a notebook; empty if it is not open."""
        return [cell.uri for cell in self._cells.get(notebook, [])]

    def around(self, uri: str, documents: Mapping[str, Document], comment: str) -> tuple[str, str]:
        """Return the text before and after a cell: code of its language as it is, the rest as comments."""
        row = self._cells.get(self._notebook_of.get(uri, ""), [])
        place = next((i for i, cell in enumerate(row) if cell.uri == uri), None)
        if place is None or uri not in documents:
            return "", ""
        language = documents[uri].language

        def text(cell: Cell) -> str:
            document = documents.get(cell.uri)
            if document is None or document.dirty or document.too_large:
                return ""
            if cell.is_code and document.language == language:
                return document.text.rstrip("\n") + "\n\n"
            return (
                "".join(f"{comment} {line.rstrip()}\n" for line in document.lines if line.strip())
                if comment
                else ""
            )

        before = "".join(reversed(_enough(map(text, reversed(row[:place])))))[-CELL_CHARS:]
        after = "".join(_enough(map(text, row[place + 1 :])))[:CELL_CHARS]
        return before, "\n\n" + after if after else ""


def _enough(texts: Iterable[str]) -> list[str]:
    """Take texts until they have ``CELL_CHARS`` together; the remaining ones are not built."""
    found: list[str] = []
    for text in texts:
        found.append(text)
        if sum(map(len, found)) >= CELL_CHARS:
            break
    return found
