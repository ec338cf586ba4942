"""Turns what a Neovim draws into a picture: UI events, cells with colours, a screenshot by Chromium."""

from __future__ import annotations

from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from tests.browser.chromium import chromium

PAGE = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; display: inline-block; padding: 10px 14px; background: {back}; color: {fore} }}
pre {{ margin: 0; font: 14px/19px 'DejaVu Sans Mono', monospace }} span {{ display: inline-block }}
</style><pre>{rows}</pre>"""
PLAIN = str.maketrans({"\u2705": "\u2714", "\u274c": "\u2718", "\ufe0f": None})  # signs that the font has


class Cell(NamedTuple):
    text: str = " "
    style: int = 0


class Screen:
    """The grid that ``ui_attach`` with ``ext_linegrid`` draws on. Other events are ignored."""

    def __init__(self) -> None:
        self._cells: list[list[Cell]] = []
        self._styles: dict[int, dict[str, Any]] = {0: {}}
        self._colours = (0xFFFFFF, 0x000000)
        self._cursor = (0, 0)

    def take(self, batches: list[list[Any]]) -> None:
        """The arguments of a notification ``redraw``."""
        for name, *calls in batches:
            handler = getattr(self, f"_{name}", None)
            for call in calls if handler else ():
                handler(*call)

    def _default_colors_set(self, fore: int, back: int, *_: Any) -> None:
        self._colours = fore, back

    def _hl_attr_define(self, style: int, looks: dict[str, Any], *_: Any) -> None:
        self._styles[style] = looks

    def _grid_resize(self, _grid: int, width: int, height: int) -> None:
        self._cells = [[Cell()] * width for _ in range(height)]

    def _grid_clear(self, _grid: int) -> None:
        self._cells = [[Cell()] * len(row) for row in self._cells]

    def _grid_cursor_goto(self, _grid: int, row: int, column: int) -> None:
        self._cursor = row, column

    def _grid_line(self, _grid: int, row: int, column: int, cells: list[list[Any]], *_: Any) -> None:
        style = 0
        for text, *more in cells:
            style, times = more[0] if more else style, more[1] if len(more) > 1 else 1
            self._cells[row][column : column + times] = [Cell(text, style)] * times
            column += times

    def _grid_scroll(
        self, _grid: int, top: int, bottom: int, left: int, right: int, rows: int, _columns: int
    ) -> None:
        order = range(top, bottom - rows) if rows > 0 else range(bottom - 1, top - rows - 1, -1)
        for row in order:
            self._cells[row][left:right] = self._cells[row + rows][left:right]

    def shoot(self, path: Path) -> None:
        """Write a PNG."""
        rows = "\n".join(self._line(number, row) for number, row in enumerate(self._cells))
        fore, back = map(_colour, self._colours)
        with chromium() as browser, browser.new_context(device_scale_factor=2) as context:
            page = context.new_page()
            page.set_content(PAGE.format(fore=fore, back=back, rows=rows))
            page.locator("body").screenshot(path=path)

    def _line(self, number: int, row: list[Cell]) -> str:
        """Runs of cells that look the same. The cursor is a bar at the left of its cell."""
        runs = groupby(enumerate(row), lambda cell: (cell[1].style, (number, cell[0]) == self._cursor))
        spans = []
        for (style, at_cursor), cells in runs:
            texts = [cell.text for _, cell in cells]
            css = self._css(self._styles.get(style, {})) + (
                "box-shadow:-2px 0 currentColor;" if at_cursor else ""
            )
            # A sign that takes two cells leaves the second empty.
            text = escape("".join(texts).translate(PLAIN)) + " " * texts.count("")
            spans.append(f'<span style="{css}">{text}</span>' if css else text)
        return "".join(spans)

    def _css(self, looks: dict[str, Any]) -> str:
        fore, back = looks.get("foreground"), looks.get("background")
        if looks.get("reverse"):
            fore, back = (
                self._colours[1] if back is None else back,
                self._colours[0] if fore is None else fore,
            )
        css = "" if fore is None else f"color:{_colour(fore)};"
        css += "" if back is None else f"background:{_colour(back)};"
        css += "font-weight:bold;" if looks.get("bold") else ""
        return css + ("font-style:italic;" if looks.get("italic") else "")


def _colour(value: int) -> str:
    return f"#{value:06x}"
