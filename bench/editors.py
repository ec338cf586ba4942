"""What a person waits for.

From a key to ghost text on the screen, in a real Neovim and a real VS Code, with nano.

python -m bench.editors [neovim] [vscode]     prints a table and writes bench/results/editors.json
EDITOR_TEST_CODER=CARD python -m bench.editors --out FILE      the same with a coder that is on this disk

Each place is a line of the standard library, cut after an operator, a bracket or a dot. The key is the
file's own next character; where the ghost text that is there before begins with it, as nearly everywhere with
a coder, a key would ask no model, and a letter with which it does not begin is typed instead. Ghost text from
before is dismissed first. Only keys that made ghost text appear count, none before the model has loaded, and
what became of the others is printed. Beside the two ends, a wiretap notes when the request passed and when
its answer, and the server says how long the engine took. ``--seconds`` ends each editor's turn with the keys
that it has by then.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from bench.front import percentile
from fimserver.reasons import Reason
from tests.editors import neovim, vscode, wiretap
from tests.editors.conftest import CODER, SERVER, folders, vscode_desk
from tests.editors.neovim import Neovim
from tests.editors.vscode import VSCode

RESULTS = Path(__file__).parent / "results" / "editors.json"
LIBRARY = Path(json.__file__).parents[1]
FILES = ("textwrap.py", "argparse.py", "configparser.py", "csv.py", "json/decoder.py", "shutil.py")
CUT = re.compile(r"(?:[=+*<>] |[(\[]|\breturn |\bin |(?<=\w)\.)(?=\S)")
KEYS = 40
FEWEST = 2  # for a percentile
PATIENCE_S = 3.0
DISMISSED_S = 10.0  # until ghost text is gone
DRAWN_S = 1.0  # not every answer is: a person moves on
FIRST = 2  # places that do not count once the model has loaded: it measures its passes meanwhile
LETTERS = "scnrt"  # begin many names in these files
COUNTED = "counted"
# A page's own clock, for the key and for the first frame with ghost text.
WATCH = f"""() => {{
  const shows = {vscode.GHOST}, now = () => (performance.timeOrigin + performance.now()) / 1000;
  window.bench = {{}};
  addEventListener('keydown', () => {{ window.bench = {{ key: now() }}; }}, true);
  const look = () => {{
    if (window.bench.key && !window.bench.shown && shows()) window.bench.shown = now();
    requestAnimationFrame(look);
  }};
  look();
}}"""
PARTS = (
    "key to ghost text",
    "key to request",
    "engine",
    "the rest of request to answer",
    "answer to ghost text",
)


class Place(NamedTuple):
    """A file whose line is cut, and the key that comes next."""

    text: str
    line: int
    column: int
    key: str


def places() -> Iterator[Place]:
    """Always the same, without end."""
    rng = random.Random(0)
    while True:
        lines = (LIBRARY / rng.choice(FILES)).read_text("utf-8").split("\n")
        row = rng.randrange(20, len(lines) - 20)
        cuts = [cut.end() for cut in CUT.finditer(lines[row])]
        if cuts and lines[row].isascii() and not lines[row].lstrip().startswith(("#", '"')):
            cut = rng.choice(cuts)
            kept = [*lines[:row], lines[row][:cut], *lines[row + 1 :]]
            yield Place("\n".join(kept), row, cut, lines[row][cut])


class Seen(NamedTuple):
    """When what happened after a key, in seconds of one clock."""

    key: float
    asked: float
    answered: float
    shown: float
    engine_ms: float

    def parts(self) -> tuple[float, ...]:
        """In milliseconds, as ``PARTS`` has them."""
        answer_ms = (self.answered - self.asked) * 1000
        whole, before, after = (self.shown - self.key, self.asked - self.key, self.shown - self.answered)
        return whole * 1000, before * 1000, self.engine_ms, answer_ms - self.engine_ms, after * 1000


@contextmanager
def in_neovim(runtime: Path) -> Iterator[tuple[Neovim, Callable[[str], tuple[float, float] | None]]]:
    neovim.WATCHDOG_S = 1800.0
    tap = [sys.executable, str(Path(wiretap.__file__)), str(runtime), *SERVER]
    with Neovim(runtime, tap, folders(runtime)) as editor:

        def press(key: str) -> tuple[float, float] | None:
            started = time.time()
            editor.keys(key.replace("<", "<lt>"))
            while not answered(runtime, started):
                for _ in range(50):  # the traffic is looked at now and then: it grows
                    if editor.ghost():
                        return started, time.time()
                    time.sleep(0.001)
            return None

        yield editor, press


@contextmanager
def in_vscode(runtime: Path) -> Iterator[tuple[VSCode, Callable[[str], tuple[float, float] | None]]]:
    (runtime / "work").mkdir()
    with vscode_desk(runtime) as window, window(runtime / "work") as editor:
        editor.page.evaluate(WATCH)

        def press(key: str) -> tuple[float, float] | None:
            started = time.time()
            editor.page.keyboard.type(key)
            while not answered(runtime, started):
                time.sleep(0.05)
            time.sleep(0.1)  # the page's own clock says when it was drawn
            shown = editor.page.evaluate("window.bench.shown")
            return (editor.page.evaluate("window.bench.key"), shown) if shown else None

        yield editor, press


EDITORS: Mapping[str, Callable[[Path], AbstractContextManager[Any]]] = {
    "neovim": in_neovim,
    "vscode": in_vscode,
}


def traffic(runtime: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in runtime.rglob("traffic-*.jsonl")
        for line in path.read_text().splitlines()
    ]


def answered(runtime: Path, since: float) -> bool:
    """Whether all requests after a time have been answered, or no more will be sent."""
    rows = [row for row in traffic(runtime) if row["t"] >= since]
    asked = {row["id"] for row in rows if row["method"] == "textDocument/inlineCompletion"}
    answers = [row["t"] for row in rows if row["from"] == "server" and row["id"] in asked]
    return time.time() - since > PATIENCE_S or (
        len(answers) == len(asked) > 0 and time.time() - answers[-1] > 0.1
    )


def seen(runtime: Path, editor: Any, times: tuple[float, float] | None) -> Seen | str:
    """Return what was noted of a key, or why it does not count: only one request to the model does."""
    explained = editor.told()
    if times is None:
        return f"no ghost text: {explained['reason']}"
    key, shown = times
    rows = [row for row in traffic(runtime) if row["t"] >= key]
    asked = [row for row in rows if row["method"] == "textDocument/inlineCompletion"]
    answers = [
        row
        for row in rows
        if row["from"] == "server" and asked and row["id"] == asked[-1]["id"] and row.get("items")
    ]
    if explained["source"] != "model":
        return f"answered from {explained['source']}"
    if len(asked) != 1 or not answers:
        return f"{len(asked)} requests, {len(answers)} answered"
    return Seen(key, asked[0]["t"], answers[0]["t"], shown, explained["engineMs"])


def measure(name: str, count: int, seconds: float) -> list[Seen]:
    """So many keys that made ghost text appear, or as many as there were when the time was over."""
    found: list[Seen] = []
    fates: Counter[str] = Counter()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fim", ignore_cleanup_errors=True) as folder:
        runtime = Path(folder)
        with EDITORS[name](runtime) as (editor, press):
            warm = 0
            for number, place in enumerate(places()):
                if len(found) == count or time.monotonic() - started > seconds:
                    break
                one = try_place(runtime, editor, press, place, f"work{number}.py")
                warm += editor.told()["reason"] != Reason.LOADING
                if warm <= FIRST:
                    one = "before the model was warm"
                found += [one] if isinstance(one, Seen) else []
                fates[one if isinstance(one, str) else COUNTED] += 1
            print(f"{name}, {time.monotonic() - started:.0f} s: {dict(fates)}", file=sys.stderr)
        for process in neovim.processes(runtime):
            process.kill()
    return found


def other_key(shown: str, key: str) -> str:
    """The key, or a letter where the ghost text shown begins with it."""
    return next(letter for letter in (key, *LETTERS) if not shown.startswith(letter))


def try_place(
    runtime: Path,
    editor: Any,
    press: Callable[[str], tuple[float, float] | None],
    place: Place,
    file: str,
) -> Seen | str:
    """Open a place and press its key."""
    editor.open(file, place.text.encode())
    editor.place(place.line, place.column)
    before = editor.settle()
    if before is None and editor.told().get("shown"):  # VS Code draws it 30 ms after the answer
        with suppress(TimeoutError):
            before = editor.wait("the ghost text to be drawn", editor.ghost, DRAWN_S)
    if before is not None:
        editor.dismiss()
        editor.wait("the ghost text to be gone", lambda: editor.ghost() is None, DISMISSED_S)
    return seen(runtime, editor, press(other_key(before.text if before else "", place.key)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("editors", nargs="*", default=list(EDITORS))
    parser.add_argument("--count", type=int, default=KEYS)
    parser.add_argument("--seconds", type=float, default=900.0, help="for each editor, at most")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    measured = {name: measure(name, options.count, options.seconds) for name in options.editors}
    if problem := report(measured, options.out):
        sys.exit(problem)


def report(measured: Mapping[str, list[Seen]], out: Path) -> str:
    """Print and write the percentiles of each editor with enough keys. Returns a line on the others."""
    few = {name: len(keys) for name, keys in measured.items() if len(keys) < FEWEST}
    enough = {name: keys for name, keys in measured.items() if name not in few}
    if enough:
        rows = {name: percentiles(keys) for name, keys in enough.items()}
        table = Table("ms", *itertools.chain.from_iterable((f"{name} p50", "p95") for name in rows))
        for part in PARTS:
            table.add_row(part, *(f"{value:.0f}" for parts in rows.values() for value in parts[part]))
        Console().print(table)
        machine = {
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "processor": platform.processor(),
        }
        counts = {name: len(keys) for name, keys in enough.items()}
        result = {"machine": machine, "coder": CODER or "nano", "count": counts, "rows": rows}
        out.write_text(json.dumps(result, indent=1) + "\n")
    return "; ".join(
        f"{name}: only {count} keys made ghost text appear: give it more --seconds"
        for name, count in few.items()
    )


def percentiles(keys: list[Seen]) -> dict[str, list[float]]:
    """p50 and p95 of each part, in ms."""
    columns = zip(*(one.parts() for one in keys), strict=True)
    return {
        part: [round(percentile(list(column), share), 1) for share in (50, 95)]
        for part, column in zip(PARTS, columns, strict=True)
    }


if __name__ == "__main__":
    main()
