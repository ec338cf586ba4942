"""Tokens a pass that a drafter would yield if the model wrote exactly the file's own text.

python -m bench.oracle [--spans N] [--json FILE]      prints a table for nano's prompt budget and one for 2048
tokens

FIM cases (the tail of a line, 3 to 8 lines, the body of a function: a third each) are cut from packages that
no model here was trained on and that nothing was tuned on: a2a-sdk, cyclopts, great-tables, langextract,
mini-swe-agent, narwhals, openai-agents, pydantic-ai (its code is in pydantic-ai-slim), strands-agents,
textual, fetched by ``pip download``. ``--tuning`` takes the installed packages below instead, which are not
in ``models/training/packages.txt`` either; the constants of ``fimserver/engine/drafters`` were fitted on
them.

A pass yields the accepted tokens and one more; the end of the middle counts as a token, which nobody drafts.
"file" is what the language server sends of it, of which the prompt shows a part; "+ open files" are up to 120
000 tokens of the same package. ``--prefilled``: the first token comes with the prompt and does not count, as
in our engine.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import subprocess
import sys
import sysconfig
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, groupby
from pathlib import Path
from statistics import median, quantiles

import platformdirs

from bench.oracle_arms import Arm, Ours, arms
from fimserver.cards import get_card
from fimserver.engine.drafters.ngram.index_cache import IndexCache
from fimserver.engine.prompts.vocabulary import Vocabulary
from fimserver.types import Request, Snippet
from models.training.corpus import RESERVED, download
from models.training.holes import line_tail

EVALUATION = sorted(RESERVED)
TUNING = [
    "hypothesis",
    "tomlkit",
    "hatchling",
    "pynvim",
    "prometheus_client",
    "execnet",
    "httpx2",
    "httpcore2",
    "mpmath",
    "tqdm",
    "pydantic_settings",
    "filelock",
]
PREFIX_CHARS, SUFFIX_CHARS = 24_000, 12_000  # what the language server sends of a file
OPEN_TOKENS, MIDDLE_TOKENS = 120_000, 256
END = -2  # no token has this id: nobody drafts the end
KINDS = ("single", "multi", "body")
CACHE = platformdirs.user_cache_path("fimserver") / "evaluation"
Files = dict[str, str]  # texts by path


@dataclass(frozen=True)
class Case:
    """A hole in a file of ``package``. ``target``: the true middle, with ``END`` unless it was cut off."""

    kind: str
    package: str
    path: str
    request: Request
    target: list[int]


@dataclass(frozen=True)
class Trace:
    """What one arm did with one case."""

    kind: str
    tokens: int
    passes: int
    drafted: int


def play(case: Case, arm: Arm, *, prefilled: bool) -> Trace:
    """Let the drafts be verified by the truth."""
    start = int(prefilled)
    done, passes, drafted, new = start, 0, 0, case.target[:start]
    while done < len(case.target):
        paths = {row[: n + 1] for row in arm(case.target[:done], new) for n in range(len(row))}
        left = case.target[done:]
        accepted = next(n for n in count() if n == len(left) or tuple(left[: n + 1]) not in paths)
        drafted += len(paths)
        new = left[: accepted + 1]
        done += len(new)
        passes += 1
    return Trace(case.kind, done - start, passes, drafted)


def others(case: Case, files: Files, sizes: dict[str, int]) -> tuple[Snippet, ...]:
    """The other files of the package, those of the same folder first. ``sizes``: tokens, by path."""
    folder = str(Path(case.path).parent)
    paths = sorted(
        (path for path in files if path != case.path),
        key=lambda path: (str(Path(path).parent) != folder, path),
    )
    tokens, chosen = 0, []
    for path in paths:
        tokens += sizes[path]
        if tokens > OPEN_TOKENS:
            break
        chosen.append(Snippet(path, files[path]))
    return tuple(chosen)


def cases(packages: dict[str, Files], spans: int, seed: int, vocabulary: Vocabulary) -> Iterator[Case]:
    """``spans`` holes, the kinds and packages in turn."""
    rng = random.Random(seed)
    names, number = sorted(name for name, files in packages.items() if files), 0
    while number < spans:
        kind, package = KINDS[number % 3], names[number // 3 % len(names)]
        path = rng.choice(sorted(packages[package]))
        text = packages[package][path]
        span = {"single": line_tail, "multi": some_lines, "body": body}[kind](text, rng)
        if span is None or not text[span[0] : span[1]].strip():
            continue
        start, end = span
        ids = vocabulary.encode(text[start:end])
        target = ids[:MIDDLE_TOKENS] if len(ids) > MIDDLE_TOKENS else [*ids, END]
        request = Request(text[max(0, start - PREFIX_CHARS) : start], text[end : end + SUFFIX_CHARS])
        yield Case(kind, package, path, request, target)
        number += 1


def some_lines(text: str, rng: random.Random) -> tuple[int, int] | None:
    """3 to 8 lines, without the indentation of the first and the end of the last."""
    lines, height = text.split("\n"), rng.randint(3, 8)
    if len(lines) < height + 5:
        return None
    first = rng.randrange(1, len(lines) - height)
    starts = line_starts(text)
    if not lines[first].strip() or not lines[first + height - 1].strip():
        return None
    indent = len(lines[first]) - len(lines[first].lstrip())
    return starts[first] + indent, starts[first + height] - 1


def body(text: str, rng: random.Random) -> tuple[int, int] | None:
    """The body of a function of 2 to 60 lines."""
    functions = [
        node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    spans = [
        (f.body[0].lineno - 1, f.end_lineno or 0, f.body[0].col_offset)
        for f in functions
        if f.body[0].lineno > f.lineno
    ]
    spans = [span for span in spans if 2 <= span[1] - span[0] <= 60]
    if not spans:
        return None
    first, last, indent = rng.choice(spans)
    starts = line_starts(text)
    return starts[first] + indent, starts[last] - 1


def line_starts(text: str) -> list[int]:
    return [0, *(i + 1 for i, char in enumerate(text) if char == "\n"), len(text) + 1]


def fetch(names: Sequence[str], folder: Path) -> list[Path]:
    """Wheels of ``names``; fewer, with a message, if pip cannot get them."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name in names if not list(folder.glob(f"{name.replace('-', '_')}-*.whl"))]
    try:
        if missing:
            download(missing, folder)
    except subprocess.CalledProcessError:
        print(f"pip could not fetch {' '.join(missing)}: these packages are left out", file=sys.stderr)
    return sorted(folder.glob("*.whl"))


def read_wheel(path: Path) -> Files:
    with zipfile.ZipFile(path) as wheel:
        return {n: wheel.read(n).decode("utf-8", "replace") for n in wheel.namelist() if n.endswith(".py")}


def read_installed(name: str) -> Files:
    root = Path(sysconfig.get_paths()["purelib"], name)
    return {str(p.relative_to(root)): p.read_text("utf-8", "replace") for p in root.rglob("*.py")}


def wanted(files: Files) -> Files:
    """Files of ordinary size that this Python accepts."""
    kept = {}
    for path, text in files.items():
        if 1500 < len(text) < 200_000 and "\r" not in text:
            try:
                ast.parse(text)
            except (SyntaxError, ValueError):
                continue
            kept[path] = text
    return kept


def per_pass(traces: Sequence[Trace]) -> float:
    return sum(t.tokens for t in traces) / max(1, sum(t.passes for t in traces))


def interval(traces: list[Trace], rng: random.Random, turns: int = 400) -> tuple[float, float]:
    """Bootstrap over the cases, 95 %."""
    values = quantiles((per_pass(rng.choices(traces, k=len(traces))) for _ in range(turns)), n=40)
    return values[0], values[-1]


def measure(
    packages: dict[str, Files], ours: Ours, spans: int, seed: int, *, prefilled: bool
) -> dict[str, list[Trace]]:
    traces: defaultdict[str, list[Trace]] = defaultdict(list)
    order = sorted(cases(packages, spans, seed, ours.vocabulary), key=lambda case: (case.package, case.path))
    for package, of_package in groupby(order, key=lambda case: case.package):
        index_caches: dict[str, IndexCache] = {}
        sizes = {path: len(ours.vocabulary.encode(text)) for path, text in packages[package].items()}
        for case in of_package:
            snippets = others(case, packages[package], sizes)
            for name, arm in arms(ours, case.request, snippets, index_caches).items():
                traces[name].append(play(case, arm, prefilled=prefilled))
    return traces


def report(traces: dict[str, list[Trace]], rng: random.Random) -> dict[str, dict[str, list[float]]]:
    """Print tokens a pass with intervals, and return them."""
    rows: dict[str, dict[str, list[float]]] = {}
    print(
        "| drafter | " + " | ".join((*KINDS, "multi + body", "all")) + " | drafted a pass |\n|" + "---|" * 7
    )
    for name, every in traces.items():
        groups = {kind: [t for t in every if t.kind == kind] for kind in KINDS}
        groups |= {"multi + body": groups["multi"] + groups["body"], "all": every}
        rows[name] = {kind: [per_pass(group), *interval(group, rng)] for kind, group in groups.items()}
        drafted = sum(t.drafted for t in every) / sum(t.passes for t in every)
        cells = [f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, low, high in rows[name].values()]
        print(f"| {name} | {' | '.join(cells)} | {drafted:.1f} |")
    return rows


def main() -> None:
    """Cut the cases, play all arms, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--spans", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--wheels", type=Path, default=CACHE)
    parser.add_argument(
        "--tuning", action="store_true", help="installed packages instead of the reserved ones"
    )
    parser.add_argument("--prefilled", action="store_true", help="count from the second token on")
    args = parser.parse_args()
    if args.tuning:
        packages = {name: wanted(read_installed(name)) for name in TUNING}
    else:
        names = ["pydantic-ai-slim" if name == "pydantic-ai" else name for name in EVALUATION]
        packages = {
            "-".join(path.name.split("-")[:2]): wanted(read_wheel(path)) for path in fetch(names, args.wheels)
        }
    if not any(packages.values()):
        sys.exit(
            "no package to cut from: let pip reach an index, give --wheels a folder with the wheels, or use"
            " --tuning"
        )
    print({name: len(files) for name, files in packages.items()}, f"seed {args.seed}")
    results = {}
    for prompt_tokens in (get_card("nano").prompt_tokens, 2048):
        ours = Ours(prompt_tokens)
        print(f"\n{args.spans} cases, prompts of {prompt_tokens} tokens, tokens a pass with 95 % intervals\n")
        results[prompt_tokens] = report(
            measure(packages, ours, args.spans, args.seed, prefilled=args.prefilled), random.Random(args.seed)
        )
        for name, values in ours.costs_us.items():
            print(f"{name}: median {median(values):.0f} us, p95 {quantiles(values, n=20)[-1]:.0f} us")
    if args.json:
        args.json.write_text(
            json.dumps(
                {"packages": sorted(packages), "spans": args.spans, "tokens_per_pass": results}, indent=1
            )
        )


if __name__ == "__main__":
    main()
