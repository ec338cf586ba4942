"""Figures beside their floors, written after each step, and the table of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One measurement. ``floor``: what bytes or operations over the measured ceilings would take."""

    name: str
    value: float | None  # None: not measured, and ``note`` says why
    unit: str
    floor: float | None = None
    note: str = ""

    def row(self) -> dict[str, Any]:
        known = self.value is not None and self.floor
        ratio = self.value / self.floor if known else None
        return {
            "name": self.name,
            "value": _short(self.value),
            "unit": self.unit,
            "floor": _short(self.floor),
            "ratio": _short(ratio),
            "note": self.note,
        }


def _short(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.4g}")


class Sheet:
    """The figures so far, in ``figures.json`` of a folder, in the order in which they were measured."""

    def __init__(self, folder: Path, *, resume: bool = False) -> None:
        """``resume``: keep the figures that are there."""
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "figures.json"
        known = json.loads(self.path.read_text("utf-8")) if resume and self.path.exists() else []
        self.figures = [Figure(**{name: row[name] for name in Figure.__annotations__}) for row in known]
        self._write()

    def __contains__(self, name: str) -> bool:
        return any(figure.name == name for figure in self.figures)

    def add(self, figures: Iterable[Figure]) -> None:
        """Take figures, print them, and write all again, so that a run that is cut off still counts."""
        for figure in figures:
            self.figures.append(figure)
            print(_line(figure), flush=True)
            self._write()

    def _write(self) -> None:
        half = self.path.with_suffix(".part")
        half.write_text(json.dumps([figure.row() for figure in self.figures], indent=1) + "\n", "utf-8")
        half.replace(self.path)

    def table(self) -> str:
        """All figures as Markdown."""
        lines = ["| figure | value | unit | floor | ratio | |", "|---|---|---|---|---|---|"]
        for figure in self.figures:
            row = figure.row()
            cells = [figure.name, row["value"], figure.unit, row["floor"], row["ratio"], figure.note]
            lines.append("| " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |")
        return "\n".join(lines) + "\n"


def _line(figure: Figure) -> str:
    row = figure.row()
    if figure.value is None:
        return f"{figure.name}: not measured ({figure.note})"
    floor = "" if row["ratio"] is None else f", floor {row['floor']}, ratio {row['ratio']}"
    return f"{figure.name}: {row['value']} {figure.unit}{floor}" + (
        f" ({figure.note})" if figure.note else ""
    )
