"""Measure the quality of middles: exact match, first line right and edit similarity on spans of real files.

python -m bench.quality cut SPANS KIND=COUNT... [--packages reserved|development] [--seed S]
python -m bench.quality fill SPANS ROWS --card CARD [--layout L] [--no-heal] [--quantize Q]
python -m bench.quality table ROWS...

``cut`` writes spans as JSON lines with the names that ``fimserver complete --spans`` reads. The reserved
packages, which nothing was trained or tuned on, are fetched by pip; the development packages are installed.
``fill`` completes them as ``complete`` does and scores them, greedy; run again with the same files, it goes
on where it was. ``table`` compares files of rows of the same spans; differences are paired, from the first.

One line is asked for where the middle is one line: rests of lines and statements of one line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from bench.endings import KINDS, PACKAGES, changed_pool, holes
from bench.intervals import Interval, bootstrap, mean_difference
from bench.oracle import read_installed, wanted
from bench.spans import read_packages
from fimserver.ab.analysis.metrics import score
from fimserver.commands.complete import complete, text_body
from fimserver.host.jobs import EngineSource
from fimserver.host.request import request_of
from fimserver.settings import Settings

ONE_LINE = frozenset({"rest of line", "line", "single-line"})
MOST_TOKENS: Mapping[str, int] = {"rest of line": 64, "line": 64, "block": 128, "body": 128}
GROUPS: Mapping[str, tuple[str, ...]] = {
    "one line": ("rest of line", "line"),
    **{kind: (kind,) for kind in KINDS},
}


@dataclass(frozen=True)
class Span:
    """A hole with its truth; ``path`` begins with the package."""

    id: str
    kind: str
    path: str
    prefix: str
    middle: str
    suffix: str


@dataclass(frozen=True)
class Row:
    """A model's middle for a span, compared with the true one."""

    id: str
    kind: str
    exact: bool
    first_line: bool
    similarity: float
    tokens: int
    ms: float
    reason: str
    completion: str


def cut(counts: Mapping[str, int], packages: Mapping[str, Mapping[str, str]], seed: int) -> Iterator[Span]:
    """So many spans of each kind, packages in turn; no two of them alike."""
    seen = set[str]()
    files = {name: dict(texts) for name, texts in packages.items()}
    for kind, count in counts.items():
        left = count
        for _, path, request, middle in holes(files, 4 * count, seed, [kind]):
            text = f"{kind}\0{request.prefix}\0{middle}\0{request.suffix}"
            digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12]
            if left and digest not in seen:
                seen.add(digest)
                left -= 1
                yield Span(digest, kind, path, request.prefix, middle, request.suffix)


def fill(engines: EngineSource, settings: Settings, spans: Sequence[Span]) -> Iterator[Row]:
    """Complete spans, each as ``fimserver complete --spans`` would. Raises ``FimError``."""
    for span in spans:
        one_line = span.kind in ONE_LINE
        changes = {"stop": "line" if one_line else "auto", "max_tokens": MOST_TOKENS.get(span.kind, 128)}
        asked = settings.model_copy(update=changes)
        body = text_body(span.prefix, span.suffix, asked, path=span.path, language="python")
        done = complete(engines, request_of(body, asked), asked)
        scores = score(done.text, span.middle)
        yield Row(
            span.id,
            span.kind,
            scores.exact,
            scores.first_line,
            round(scores.similarity, 4),
            done.usage.tokens,
            round(done.total_ms, 1),
            str(done.usage.reason),
            done.text,
        )


def table(files: Mapping[str, Sequence[Row]]) -> str:
    """A table in Markdown: for each group of kinds, a line for each file, over the spans that all have."""
    common = set.intersection(*({row.id for row in rows} for rows in files.values()))
    by_name = {name: {row.id: row for row in rows if row.id in common} for name, rows in files.items()}
    first = next(iter(by_name))
    lines = [
        "| spans | model | exact | first line right | difference | edit similarity | tokens |\n"
        + "|---" * 7
        + "|"
    ]
    for group, kinds in GROUPS.items():
        ids = sorted(key for key, row in by_name[first].items() if row.kind in kinds)
        for name, rows in by_name.items() if ids else ():
            some = [rows[key] for key in ids]
            right = [float(row.first_line) for row in some]
            base = [float(by_name[first][key].first_line) for key in ids]
            difference = "" if name == first else points(bootstrap(mean_difference, right, base))
            cells = [
                share([float(row.exact) for row in some]),
                share(right),
                difference,
                share([row.similarity for row in some]),
                f"{fmean(row.tokens for row in some):.0f}",
            ]
            lines.append(f"| {group} ({len(ids)}) | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def share(values: Sequence[float]) -> str:
    """A mean in per cent with its 95 % bootstrap interval."""
    return percent(bootstrap(mean_difference, values, [0.0] * len(values)))


def percent(interval: Interval) -> str:
    """An interval of shares."""
    return f"{interval.value:.1%} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def points(interval: Interval) -> str:
    """An interval of a difference of shares, in percentage points."""
    value, low, high = (100 * part for part in interval)
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def read_spans(path: Path) -> list[Span]:
    return [Span(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]


def read_rows(path: Path) -> list[Row]:
    """Rows of a file; a last line that was cut off is left out."""
    lines = path.read_text("utf-8").split("\n")[:-1] if path.exists() else []
    return [Row(**json.loads(line)) for line in lines]


def run_cut(args: argparse.Namespace) -> None:
    """Write spans."""
    counts = {kind: int(count) for kind, _, count in (each.rpartition("=") for each in args.counts)}
    if unknown := sorted(set(counts) - set(KINDS)):
        sys.exit(f"no kind of span is named {unknown[0]!r}: give some of {', '.join(KINDS)}")
    reserved = args.packages == "reserved"
    packages = read_packages() if reserved else {name: wanted(read_installed(name)) for name in PACKAGES}
    spans = sorted(
        cut(counts, packages, args.seed), key=lambda span: span.id
    )  # any first part is a fair sample
    args.spans.write_text("".join(json.dumps(asdict(span)) + "\n" for span in spans), "utf-8")


def run_fill(args: argparse.Namespace) -> None:
    """Append rows, one a span that has none yet."""
    flags = {
        f"{args.route}_card": args.card,
        "model": args.route,
        "prompt_tokens": args.prompt_tokens,
        "quantize": args.quantize,
        "deadline_ms": 120_000,
    }
    rows = read_rows(args.rows)
    args.rows.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows), "utf-8")
    done = {row.id for row in rows}
    left = [span for span in read_spans(args.spans) if span.id not in done]
    pool = changed_pool(flags, args.layout, heal=not args.no_heal)
    with args.rows.open("a", encoding="utf-8") as out:
        for row in fill(pool, pool.settings, left):
            out.write(json.dumps(asdict(row)) + "\n")
            out.flush()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    cutting = commands.add_parser("cut", help="write spans")
    cutting.add_argument("spans", type=Path)
    cutting.add_argument("counts", nargs="+", metavar="KIND=COUNT")
    cutting.add_argument("--packages", choices=("reserved", "development"), default="reserved")
    cutting.add_argument("--seed", type=int, default=0)
    cutting.set_defaults(run=run_cut)
    filling = commands.add_parser("fill", help="complete spans and score them")
    filling.add_argument("spans", type=Path)
    filling.add_argument("rows", type=Path)
    filling.add_argument("--card", required=True)
    filling.add_argument("--route", choices=("ar", "dllm"), default="ar")
    filling.add_argument("--prompt-tokens", type=int, default=1024)
    filling.add_argument("--quantize", default="auto")
    filling.add_argument("--layout", choices=("psm", "spm", "spm_tail"), help="instead of the card's")
    filling.add_argument("--no-heal", action="store_true", help="no token healing, whatever the card says")
    filling.set_defaults(run=run_fill)
    showing = commands.add_parser("table", help="print what models wrote, compared")
    showing.add_argument("files", type=Path, nargs="+")
    showing.set_defaults(run=lambda args: print(table({file.stem: read_rows(file) for file in args.files})))
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
