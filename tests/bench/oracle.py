"""How many tokens a pass a drafter would yield if the model wrote exactly what stands in the file (specdec §7.1).

python -m tests.bench.oracle [--spans N] [--json FILE]      prints a table for nano's prompt budget and one for 2048 tokens

FIM cases (the tail of a line, 3 to 8 lines, the body of a function: a third each) are cut from packages that no model here
was trained on and that nothing was tuned on: a2a-sdk, cyclopts, great-tables, langextract, mini-swe-agent, narwhals,
openai-agents, strands-agents, textual, fetched by ``pip download`` (pydantic-ai, the tenth of the reserved packages, is an
empty wheel). ``--tuning`` takes the installed packages below instead, which are not in ``models/training/packages.txt``
either; the constants of ``fimserver/engine/drafters`` were fitted on them.

A pass yields the accepted tokens and one more; the end of the middle counts as a token. Trees have up to 24 nodes.
``--prefilled``: the first token comes with the prompt and is not counted, as in an engine that does not draft in its prefill.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import random
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, groupby
from pathlib import Path
from statistics import median, quantiles

from fimserver.cards import MODELS, get_card
from fimserver.engine.drafters.ngram import NGram
from fimserver.engine.drafters.shelf import Shelf
from fimserver.engine.drafts import Draft, Line
from fimserver.engine.prompt import cut_context, fim_prompt
from fimserver.engine.vocabulary import Vocabulary, read_tokenizer
from fimserver.types import Request, Snippet
from models.training.holes import line_tail

EVALUATION = (
    "a2a-sdk cyclopts great-tables langextract mini-swe-agent narwhals openai-agents pydantic-ai strands-agents textual"
).split()
TUNING = (
    "hypothesis tomlkit hatchling pynvim prometheus_client execnet httpx2 httpcore2 mpmath tqdm pydantic_settings filelock"
).split()
PREFIX_CHARS, SUFFIX_CHARS = 24_000, 12_000  # what the language server sends of a file
OPEN_TOKENS, MIDDLE_TOKENS, WIDTH = 120_000, 256, 24
END = -2  # no token has this id: nobody drafts the end
KINDS = ("single", "multi", "body")
Files = dict[str, str]  # texts by path
Chains = list[tuple[int, ...]]
Drafts = Callable[[list[int], list[int]], Chains]  # (middle so far, what of it is new) -> drafts


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


class Bench:
    """The tokenizer and the card, with one prompt budget."""

    def __init__(self, prompt_tokens: int, *, prefilled: bool) -> None:
        self.card = get_card("nano").model_copy(update={"prompt_tokens": prompt_tokens})
        self.vocabulary = Vocabulary(read_tokenizer(MODELS / "nano", self.card), self.card)
        self.prefilled = prefilled
        self.costs: defaultdict[str, list[float]] = defaultdict(list)  # of our drafter, us

    def line(self, request: Request) -> Line:
        context = cut_context(request, self.card, self.vocabulary)
        assert self.card.fim
        prompt = fim_prompt(context, self.card.fim, self.vocabulary)
        return Line(
            request, prompt, [*context.prefix, *context.typed], list(context.suffix), lambda _logits, _offset: (0, None)
        )

    def play(self, case: Case, drafts: Drafts) -> Trace:
        """Let ``drafts`` be verified by the truth."""
        start = int(self.prefilled)
        done, passes, drafted, new = start, 0, 0, case.target[:start]
        while done < len(case.target):
            tree = branches(drafts(case.target[:done], new), WIDTH)
            accepted = next(
                n for n in count() if tuple(case.target[done : done + n + 1]) not in tree or done + n == len(case.target)
            )
            drafted += len(tree)
            new = case.target[done : done + accepted + 1]
            done += len(new)
            passes += 1
        return Trace(case.kind, done - start, passes, drafted)

    def ours(self, line: Line, shelf: Shelf, size: int, *, tree: bool) -> Drafts:
        """Our drafter, with all texts read, as after some middles in the same files."""
        NGram(self.vocabulary, shelf).observe(line, ended=False)
        while shelf.build(2000):
            pass
        drafter = NGram(self.vocabulary, shelf)
        line = dataclasses.replace(line, ids=[])
        self.costs["open"].append(timed(lambda: drafter.observe(line, ended=False)))

        def drafts(_middle: list[int], new: list[int]) -> Chains:
            line.ids += new
            found: list[Draft] = []
            if new:
                self.costs["observe"].append(timed(lambda: drafter.observe(line, ended=False)))
            self.costs["propose" if line.ids else "propose first"].append(
                timed(lambda: found.extend(drafter.propose(line, size)))
            )
            return [draft.tokens for draft in (found if tree else found[:1])]

        return drafts


def branches(chains: Chains, width: int) -> set[tuple[int, ...]]:
    """All paths from the root of the tree of ``chains``, the first ``width`` of them."""
    paths = dict.fromkeys(chain[: n + 1] for chain in chains for n in range(len(chain)))
    return set(list(paths)[:width])


def timed(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e6


def prompt_lookup(prompt: list[int], longest: int = 2, length: int = 10) -> Drafts:
    """transformers' ``PromptLookupCandidateGenerator``: the leftmost match of the longest n-gram that matches at all."""

    def drafts(middle: list[int], _new: list[int]) -> Chains:
        return leftmost(prompt + middle, range(longest, 0, -1), length)

    return drafts


def vllm_ngram(prompt: list[int], shortest: int = 5, longest: int = 5, length: int = 5) -> Drafts:
    """vLLM's ``ngram`` with its defaults."""

    def drafts(middle: list[int], _new: list[int]) -> Chains:
        return leftmost(prompt + middle, range(longest, shortest - 1, -1), length)

    return drafts


def leftmost(ids: list[int], sizes: Sequence[int], length: int) -> Chains:
    for size in sizes:
        tail = ids[-size:]
        at = -1
        while True:
            try:
                at = ids.index(tail[0], at + 1, len(ids) - size)
            except ValueError:
                break
            if ids[at : at + size] == tail:
                return [tuple(ids[at + size : at + size + length])]
    return []


def arms(bench: Bench, case: Case, files: Files, shelves: tuple[Shelf, Shelf]) -> dict[str, Drafts]:
    """What is compared."""
    line = bench.line(case.request)
    seen = Request(bench.vocabulary.decode(line.prefix), bench.vocabulary.decode(line.suffix))
    window = Line(seen, line.prompt, line.prefix, line.suffix, line.pick)
    snippets = Request(case.request.prefix, case.request.suffix, snippets=others(case, files, bench.vocabulary))
    repository = Line(snippets, line.prompt, line.prefix, line.suffix, line.pick)
    own, open_ = shelves
    return {
        "none": lambda _middle, _new: [],
        "transformers prompt lookup (n<=2, 10)": prompt_lookup(line.prompt),
        "vLLM ngram (n=5, 5)": vllm_ngram(line.prompt),
        "ours, prompt, tree 24": bench.ours(window, own, 24, tree=True),
        "ours, file, chain 7": bench.ours(line, own, 7, tree=False),
        "ours, file, chain 15": bench.ours(line, own, 15, tree=False),
        "ours, file, tree 24": bench.ours(line, own, 24, tree=True),
        "ours, + open files, chain 7": bench.ours(repository, open_, 7, tree=False),
        "ours, + open files, chain 15": bench.ours(repository, open_, 15, tree=False),
        "ours, + open files, tree 24": bench.ours(repository, open_, 24, tree=True),
    }


def others(case: Case, files: Files, vocabulary: Vocabulary) -> tuple[Snippet, ...]:
    """The other files of the package, those of the same folder first."""
    folder = str(Path(case.path).parent)
    paths = sorted((path for path in files if path != case.path), key=lambda path: (str(Path(path).parent) != folder, path))
    tokens, chosen = 0, []
    for path in paths:
        tokens += len(vocabulary.encode(files[path]))
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
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    spans = [(f.body[0].lineno - 1, f.end_lineno or 0, f.body[0].col_offset) for f in functions if f.body[0].lineno > f.lineno]
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
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--only-binary",
        ":all:",
        "-d",
        str(folder),
        *missing,
    ]
    if missing and subprocess.run(command, check=False).returncode:
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


def measure(packages: dict[str, Files], bench: Bench, spans: int, seed: int) -> dict[str, list[Trace]]:
    traces: defaultdict[str, list[Trace]] = defaultdict(list)
    order = sorted(cases(packages, spans, seed, bench.vocabulary), key=lambda case: (case.package, case.path))
    for package, of_package in groupby(order, key=lambda case: case.package):
        shelves = Shelf(bench.vocabulary, 10**7), Shelf(bench.vocabulary, 10**7)
        for case in of_package:
            for name, drafts in arms(bench, case, packages[package], shelves).items():
                traces[name].append(bench.play(case, drafts))
    return traces


def report(traces: dict[str, list[Trace]], rng: random.Random) -> dict[str, dict[str, list[float]]]:
    """Print tokens a pass with intervals, and return them."""
    rows: dict[str, dict[str, list[float]]] = {}
    print("| drafter | " + " | ".join((*KINDS, "multi + body", "all")) + " | drafted a pass |\n|" + "---|" * 7)
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spans", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--wheels", type=Path, default=Path(tempfile.gettempdir(), "fimserver-oracle"))
    parser.add_argument("--tuning", action="store_true", help="installed packages instead of the reserved ones")
    parser.add_argument("--prefilled", action="store_true", help="count from the second token on")
    args = parser.parse_args()
    if args.tuning:
        packages = {name: wanted(read_installed(name)) for name in TUNING}
    else:
        packages = {path.name.split("-")[0]: wanted(read_wheel(path)) for path in fetch(EVALUATION, args.wheels)}
    if not any(packages.values()):
        sys.exit("no package to cut from: let pip reach an index, give --wheels a folder with the wheels, or use --tuning")
    print({name: len(files) for name, files in packages.items()}, f"seed {args.seed}")
    results = {}
    for prompt_tokens in (get_card("nano").prompt_tokens, 2048):
        bench = Bench(prompt_tokens, prefilled=args.prefilled)
        print(f"\n{args.spans} cases, prompts of {prompt_tokens} tokens, tokens a pass with 95 % intervals\n")
        results[prompt_tokens] = report(measure(packages, bench, args.spans, args.seed), random.Random(args.seed))
        for name, values in bench.costs.items():
            print(f"{name}: median {median(values):.0f} us, p95 {quantiles(values, n=20)[-1]:.0f} us")
    if args.json:
        args.json.write_text(
            json.dumps({"packages": sorted(packages), "spans": args.spans, "tokens_per_pass": results}, indent=1)
        )


if __name__ == "__main__":
    main()
