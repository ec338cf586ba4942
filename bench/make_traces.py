"""Typing traces out of source files: real code, made-up timing, and the header of each trace says so.

python -m bench.make_traces FILE:FIRST-LAST [...] --seed 1 --out FOLDER

The lines FIRST to LAST are taken out of the file, counted from 1, and typed back one character after the
other. The pause before a key is lognormal with median 130 ms and sigma 0.45; at a line end, with probability
0.15, someone thinks for 0.5 to 2 s more. A line end and the blanks of the next line come with one key, as
editors indent.
"""

from __future__ import annotations

import argparse
import math
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from fimserver.ab.items.traces import Change, Event, Open, Patch, Trace, write_trace
from fimserver.errors import InputError
from fimserver.types import unix_lines

MEDIAN_MS, SIGMA = 130.0, 0.45
THINK_SHARE, THINK_MS = 0.15, (500.0, 2000.0)
MADE = (
    f"synthetic timing of real code: keys lognormal, median {MEDIAN_MS:g} ms, sigma {SIGMA}; "
    f"{THINK_MS[0]:g} to {THINK_MS[1]:g} ms more at a line end with probability {THINK_SHARE}; seed {{seed}}"
)
LANGUAGES = {
    ".py": "python",
    ".go": "go",
    ".rs": "rust",
    ".js": "javascript",
    ".ts": "typescript",
    ".java": "java",
    ".c": "c",
}
_KEYS = re.compile(r"\n[ \t]*|.", re.DOTALL)


def make_trace(name: str, text: str, first: int, last: int, seed: int) -> Trace:
    """Lines ``first`` to ``last`` of a text, counted from 1 and both typed.

    Raises ``InputError`` where there are none.
    """
    lines = unix_lines(text).splitlines(keepends=True)
    if not 1 <= first <= last <= len(lines):
        raise InputError(f"{name}: lines {first}-{last} are not among its {len(lines)} lines")
    typed = "".join(lines[first - 1 : last]).removesuffix("\n")
    rest = [*lines[: first - 1], "\n", *lines[last:]]
    opened = Open(
        t=0.0,
        doc=1,
        language=LANGUAGES.get(Path(name).suffix, "plaintext"),
        name=Path(name).name,
        text="".join(rest),
    )
    keys = _keys(typed, first - 1, random.Random(seed))
    return Trace(
        f"{Path(name).stem}-{first}-{last}", (opened, *keys), started="", made=MADE.format(seed=seed)
    )


def _keys(typed: str, line: int, draw: random.Random) -> Iterator[Event]:
    now_ms, char = 0.0, 0
    for match in _KEYS.finditer(typed):
        key = match[0]
        now_ms += draw.lognormvariate(math.log(MEDIAN_MS), SIGMA)
        if key.startswith("\n") and draw.random() < THINK_SHARE:
            now_ms += draw.uniform(*THINK_MS)
        yield Change(t=round(now_ms, 1), doc=1, edits=(Patch(line, char, line, char, key),))
        line, char = (line + 1, len(key) - 1) if key.startswith("\n") else (line, char + len(key))


def read_place(spec: str) -> tuple[Path, int, int]:
    """``FILE:FIRST-LAST``. Raises ``InputError``."""
    match = re.fullmatch(r"(.+):(\d+)-(\d+)", spec)
    if not match:
        raise InputError(f"{spec}: give FILE:FIRST-LAST, for example app.py:10-30")
    return Path(match[1]), int(match[2]), int(match[3])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Typing traces out of source files.")
    parser.add_argument("places", nargs="+", metavar="FILE:FIRST-LAST")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for number, spec in enumerate(options.places):
        path, first, last = read_place(spec)
        trace = make_trace(path.name, path.read_text("utf-8"), first, last, options.seed + number)
        write_trace(options.out / f"{trace.name}.jsonl", trace)
        print(f"{trace.name}: {len(trace.events) - 1} keys, {trace.events[-1].t_ms / 1000:.0f} s")


if __name__ == "__main__":
    main()
