"""Knows how the screen of a Neovim becomes a picture: each cell with its colours, drawn by a Chromium. Knows no test."""

from __future__ import annotations

from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from tests.browser.chromium import chromium

CELLS = """
  vim.cmd.redraw()
  local cells = {}
  for row = 1, vim.o.lines do
    cells[row] = {}
    for column = 1, vim.o.columns do
      local cell = vim.api.nvim__inspect_cell(1, row - 1, column - 1)
      cells[row][column] = { cell[1], next(cell[2] or {}) and cell[2] or vim.NIL }
    end
  end
  local normal, cursor = vim.api.nvim_get_hl(0, { name = 'Normal' }), vim.fn.screenpos(0, vim.fn.line('.'), vim.fn.col('.'))
  return { cells, normal.fg, normal.bg, { cursor.row, cursor.col } }
"""
PAGE = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; display: inline-block; padding: 10px 14px; background: {back}; color: {fore} }}
pre {{ margin: 0; font: 14px/1.35 'DejaVu Sans Mono', monospace }}
</style><pre>{rows}</pre>"""


def shoot(nvim: Any, path: Path) -> None:
    """Write a PNG of what ``nvim``, a pynvim session with a terminal UI, has on its screen."""
    rows, fore, back, cursor = nvim.exec_lua(CELLS)
    lines = []
    for number, row in enumerate(rows, 1):
        styled = [(*cell, (number, column) == tuple(cursor)) for column, cell in enumerate(row, 1)]
        lines.append("".join(_span(style, "".join(c[0] for c in cells)) for style, cells in groupby(styled, _style)))
    page = PAGE.format(fore=_colour(fore), back=_colour(back), rows="\n".join(lines))
    with chromium() as browser, browser.new_context(device_scale_factor=2) as context:
        shown = context.new_page()
        shown.set_content(page)
        shown.locator("body").screenshot(path=path)


def _style(cell: tuple[str, dict[str, Any] | None, bool]) -> str:
    _text, found, at_cursor = cell
    looks = found or {}
    fore, back = looks.get("foreground"), looks.get("background")
    if looks.get("reverse"):
        fore, back = back if back is not None else "canvas", fore
    style = f"color:{_colour(fore)};" if fore is not None else ""
    style += f"background:{_colour(back)};" if back is not None else ""
    style += "font-weight:bold;" if looks.get("bold") else ""
    style += "font-style:italic;" if looks.get("italic") else ""
    return style + ("border-left:2px solid;margin-left:-2px;" if at_cursor else "")


def _span(style: str, text: str) -> str:
    return f'<span style="{style}">{escape(text)}</span>' if style else escape(text)


def _colour(value: int | str) -> str:
    return value if isinstance(value, str) else f"#{value:06x}"
