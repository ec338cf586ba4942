"""Draws figures as SVG in the colours of the page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fimserver.ab.schema import Side

# Colours that nothing else uses, and the variables of the page that replace them.
INK = "#010203"


GRID = "#010204"


_A = "#010205"


_B = "#010206"


VARIABLES = {INK: "var(--ink)", GRID: "var(--grid)", _A: "var(--a)", _B: "var(--b)"}


COLOURS: Mapping[Side, str] = {"a": _A, "b": _B}


DASHES: Mapping[Side, str] = {"a": "-", "b": "--"}


MARKERS: Mapping[Side, str] = {"a": "o", "b": "s"}


STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fimserver",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so the layout is the same everywhere
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.8,
    "figure.facecolor": "none",
    "axes.unicode_minus": False,
    "axes.titlesize": 10.5,
    "path.simplify": False,
    "text.parse_math": False,  # names may contain dollar signs
}


WIDE = 10.4


NARROW = 4.6  # inches of 72 units: a column of the page is as wide as this is in units, or less


def log_ms(axes: Axes, *, both: bool = False) -> None:
    """Use a log axis with ticks at 1, 2 and 5 of each decade, in plain figures."""
    for axis in (axes.xaxis, axes.yaxis)[: 1 + both]:
        axis.axes.set_xscale("log") if axis is axes.xaxis else axis.axes.set_yscale("log")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axis.set_minor_formatter(NullFormatter())


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    with mpl.rc_context(STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def svg(figure: Figure, name: str, title: str) -> Markup:
    """Return the figure as inline SVG. Its ids are prefixed by ``name``, as matplotlib reuses ids."""
    file = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+")  # the browser's fonts draw the text
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = re.sub(
        r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>",
        "",
        file.getvalue(),
        flags=re.DOTALL,
    )
    text = re.sub(r'\b(id="|href="#)', rf"\g<1>{name}-", text).replace("url(#", f"url(#{name}-")
    text = re.sub(r"\n\s*", "\n", text).strip()
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    opening, _, body = text.partition(">")
    box = re.search(r'viewBox="[^"]*"', opening)
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        f" {box[0] if box else ''}"
    )
    label = f'role="img" aria-labelledby="{name}-title"><title id="{name}-title">{escape(title)}</title>'
    # matplotlib escapes its texts; the title is escaped above.
    return Markup(f"{head} {label}{body}")  # noqa: S704
