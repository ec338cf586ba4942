"""Listing of models as text: columns that fit 80 characters, paths on separate lines, nothing truncated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import click

from fimserver.store.catalogue import UNKNOWN_WEIGHTS, CatalogueEntry
from fimserver.store.sizes import size_text

TITLES = {
    "here": "on this machine",
    "elsewhere": "on this machine, where another program keeps it",
    "found": "found in other programs: `fimserver models add PATH` makes a link",
    "unknown": "found in other programs, in no card: `--ar-card PATH` uses them",
    "absent": "to get: `fimserver models get NAME`",
}
HEAD = ("", "routes", "size", "format", "fits", " licence")
NOTE = "* serves its route by default   ~ about   ! not OSI-approved, never a default"


def text(entries: Iterable[CatalogueEntry], caches: Mapping[Path, int], *, is_terminal: bool) -> str:
    """Format the whole listing, with colours on a terminal."""
    rows = list(entries)
    name_width = max((len(entry.name) for entry in rows if entry.state != "unknown"), default=0) + 1
    lines = [_row(HEAD, name_width)]
    for state, title in TITLES.items():
        if some := [entry for entry in rows if entry.state == state]:
            lines += [
                "",
                click.style(title, bold=True),
                *(line for entry in some for line in _lines(entry, name_width)),
            ]
    lines += ["", NOTE]
    lines += [
        f"cache {folder}: {size_text(size)}; `fimserver models rm caches` clears it"
        for folder, size in caches.items()
    ]
    whole = "\n".join(lines)
    return whole if is_terminal else click.unstyle(whole)


def _lines(entry: CatalogueEntry, name_width: int) -> Iterator[str]:
    routes = " ".join(f"{route}*" if route in entry.default_of else route for route in entry.routes)
    size = ("~" if entry.state == "absent" and entry.weights == UNKNOWN_WEIGHTS else "") + size_text(
        entry.size_bytes
    )
    fits = {True: "yes", False: "no", None: "?"}[entry.fits]
    licence = ("!" if entry.licence and not entry.osi else " ") + entry.licence
    row = _row((entry.name, routes, size, entry.weights, fits, licence), name_width)
    yield click.style(row, fg="yellow") if entry.licence and not entry.osi else row
    if entry.keystroke_ms is not None:
        yield f"    {entry.keystroke_ms:.0f} ms a keystroke, measured here"
    if entry.state != "absent":
        yield click.style(f"    {entry.where}", dim=True)


def _row(cells: tuple[str, ...], name_width: int) -> str:
    name, routes, size, weights, fits, licence = cells
    return f"{name:{name_width}}{routes:9}{size:>7} {weights:7}{fits:5}{licence}".rstrip()
