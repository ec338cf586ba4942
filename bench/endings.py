"""Measure the rules that end a middle on holes in real files.

python -m bench.endings make FILE --card CARD [--spans N]   fill N holes with no rule at all and write tokens
and truths python -m bench.endings report FILE...                      end the recorded middles by each set of
rules, print a table python -m bench.endings truth [--spans N]                   where the rules end a text
that goes on exactly as the file does

Holes are cut from packages that no model here was trained on and that are not reserved for evaluation. Rules
look at text alone, so one recording without rules is enough for all of them: a rule only decides how many of
its tokens are used.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from bench.oracle import Files, body, read_installed, wanted
from fimserver.engine.autoregressive import Autoregressive
from fimserver.engine.engines import ModelPool
from fimserver.engine.output import make_endings
from fimserver.engine.speculation.drafts import ScriptedDrafter
from fimserver.lengths import common_prefix
from fimserver.settings import read_settings
from fimserver.stopping.rules import RULES
from fimserver.types import Deadline, Request, Sampling
from models.training.holes import line_tail

PACKAGES = (
    "hypothesis", "hatchling", "pynvim", "prometheus_client", "execnet", "httpx2", "httpcore2", "mpmath",
    "tqdm",
    "pydantic_settings", "filelock", "fontTools", "playwright",
)  # fmt: skip
PREFIX_CHARS, SUFFIX_CHARS = 12_000, 6_000
MOST_TOKENS = 64
Cut = Callable[[str, random.Random], tuple[int, int] | None]


def whole_line(text: str, rng: random.Random) -> tuple[int, int] | None:
    """A statement of one line, from its first character to its end."""
    lines = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.stmt) and node.lineno == node.end_lineno
    ]
    if not lines:
        return None
    row = rng.choice(lines).lineno - 1
    return span_of_rows(text, row, row)


def statements(text: str, rng: random.Random) -> tuple[int, int] | None:
    """Two to four statements of one block, with at most twelve lines."""
    runs: list[tuple[int, int]] = []
    for node in ast.walk(ast.parse(text)):
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if isinstance(block, list) and not isinstance(node, ast.Module) and len(block) > 2:
                first = rng.randrange(len(block) - 1)
                last = min(len(block) - 1, first + rng.randint(1, 3))
                runs.append((block[first].lineno - 1, (block[last].end_lineno or 0) - 1))
    runs = [run for run in runs if 2 <= run[1] - run[0] + 1 <= 12]
    return span_of_rows(text, *rng.choice(runs)) if runs else None


def span_of_rows(text: str, first: int, last: int) -> tuple[int, int]:
    """Offsets of whole lines without the indentation of the first and the newline of the last."""
    lines = text.split("\n")
    start = sum(len(line) + 1 for line in lines[:first])
    end = start + sum(len(line) + 1 for line in lines[first : last + 1]) - 1
    return start + len(lines[first]) - len(lines[first].lstrip()), end


KINDS: dict[str, Cut] = {"rest of line": line_tail, "line": whole_line, "block": statements, "body": body}


@dataclasses.dataclass(frozen=True)
class Recording:
    """A hole, its true middle, and what the model wrote there without rules: the text after each token.

    ``ended``: the model ended the middle itself after the last token. ``passes``: of the network, those over
    the prompt apart.
    """

    kind: str
    path: str
    prefix: str
    suffix: str
    truth: str
    texts: tuple[str, ...]
    ended: bool
    passes: int = 0


def holes(
    packages: dict[str, Files], count: int, seed: int, kinds: Sequence[str] = tuple(KINDS)
) -> Iterator[tuple[str, str, Request, str]]:
    """Kind, path, request and true middle of ``count`` holes, kinds and packages in turn."""
    rng = random.Random(seed)
    names, number = sorted(name for name, files in packages.items() if files), 0
    while number < count:
        kind, package = kinds[number % len(kinds)], names[number // len(kinds) % len(names)]
        path = rng.choice(sorted(packages[package]))
        text = packages[package][path]
        span = KINDS[kind](text, rng)
        if span is None or not text[span[0] : span[1]].strip():
            continue
        start, end = span
        request = Request(
            text[max(0, start - PREFIX_CHARS) : start],
            text[end : end + SUFFIX_CHARS],
            path=path,
            sampling=Sampling(max_tokens=MOST_TOKENS, stop="none"),
        )
        yield kind, f"{package}/{path}", request, text[start:end]
        number += 1


def record(engine: Autoregressive, kind: str, path: str, request: Request, truth: str) -> Recording:
    """Let the engine write until it ends the middle itself or has used all tokens."""
    watcher = ScriptedDrafter()
    drafters = engine.speculation.drafters
    engine.speculation.drafters = (*drafters, watcher)
    last = list(engine.complete(request, Deadline()))[-1]
    engine.speculation.drafters = drafters
    ids = watcher.seen
    held = len(engine.decode_state(request, Deadline()).held)
    texts = tuple(engine.vocabulary.decode(ids[: n + 1])[held:] for n in range(len(ids)))
    passes = last.forwards - last.prefill.forwards + 1
    ended = str(last.reason) in {"end", "empty"}
    return Recording(kind, path, request.prefix, request.suffix, truth, texts, ended, passes)


def changed_pool(
    flags: Mapping[str, object], layout: str | None, prompt_tokens: int = 0, *, heal: bool = True
) -> ModelPool:
    """Models of the settings ``flags``, the prompt of the ar route's card changed.

    ``layout`` and ``prompt_tokens``: as the card has them where ``None`` and 0. ``heal``: false for no token
    healing, whatever the card says.
    """
    pool = ModelPool(read_settings(**flags))
    card = pool.card("ar")
    assert card.fim is not None
    if prompt_tokens:
        card = card.model_copy(update={"prompt_tokens": prompt_tokens})
    changes: dict[str, object] = {} if heal else {"heal": False}
    if layout:
        changes |= {"layout": layout, "typed_after_middle": False}
    pool._cards["ar"] = card.model_copy(update={"fim": card.fim.model_copy(update=changes)})
    return pool


def make(args: argparse.Namespace) -> None:
    """Write recordings as JSON lines, one a hole, as they come."""
    flags: dict[str, object] = {"ar_card": args.card}
    flags |= {"models_dir": args.models_dir} if args.models_dir else {}
    pool = changed_pool(flags, args.layout, args.prompt_tokens, heal=not args.no_heal)
    engine = pool.engine("ar")
    assert isinstance(engine, Autoregressive)
    packages = {name: wanted(read_installed(name)) for name in PACKAGES}
    with args.file.open("w") as out:
        for number, hole in enumerate(holes(packages, args.spans, args.seed, args.kinds)):
            out.write(json.dumps(dataclasses.asdict(record(engine, *hole))) + "\n")
            out.flush()
            print(number + 1, end="\r", file=sys.stderr)


@dataclasses.dataclass(frozen=True)
class Score:
    """One recorded middle, ended by one set of rules."""

    first_line: bool
    exact: bool
    kept_chars: int  # of the truth, from its start, that were written
    extra_chars: int  # that were written after the first difference from the truth
    tokens: int
    reason: str


def score(recording: Recording, rules: frozenset[str] | None) -> Score:
    """End a recorded middle by ``rules``, token by token; ``None`` for no rule at all, not even one line."""
    request = Request(recording.prefix, recording.suffix, path=recording.path, sampling=Sampling(stop="auto"))
    endings = None if rules is None else make_endings(request, rules)
    tokens, text, reason = (
        len(recording.texts) + recording.ended,
        recording.texts[-1] if recording.texts else "",
        "none",
    )
    reason = "end" if recording.ended else "length"
    for count, written in enumerate(recording.texts, 1):
        if endings and (end := endings.end(written.rstrip("\ufffd"))):
            tokens, text, reason = count, written[: end.chars], str(end.reason)
            break
    truth = recording.truth.rstrip()
    same = common_prefix(text, truth)
    first = text.lstrip("\n").split("\n")[0].strip() == truth.split("\n")[0].strip()
    return Score(first, text.rstrip() == truth, same, len(text.rstrip()) - same, tokens, reason)


ARMS: dict[str, frozenset[str] | None] = {
    "no rule": None,
    "one line alone": frozenset(),
    **{f"without {rule}": RULES - {rule} for rule in sorted(RULES)},
    "all rules": RULES,
}


def report(recordings: Sequence[Recording]) -> None:
    """Print the quality of the middles for each kind of hole and each set of rules."""
    print(
        "| holes | rules | first line right | exact | true characters | others | tokens | ended by |\n"
        + "|---" * 8
        + "|"
    )
    for kind in (*KINDS, "all"):
        some = [each for each in recordings if kind in {each.kind, "all"}]
        for name, rules in ARMS.items() if some else ():
            scores = [score(each, rules) for each in some]
            n = len(scores)
            reasons = Counter(each.reason for each in scores).most_common(4)
            print(
                f"| {kind} ({n}) | {name} | {sum(s.first_line for s in scores) / n:.0%} |"
                f" {sum(s.exact for s in scores) / n:.0%} | {sum(s.kept_chars for s in scores) / n:.1f} |"
                f" {sum(s.extra_chars for s in scores) / n:.1f} | {sum(s.tokens for s in scores) / n:.1f} |"
                f" {', '.join(f'{reason} {count}' for reason, count in reasons)} |"
            )


def show(recordings: Sequence[Recording]) -> None:
    """Print the table and the tokens per pass with drafts."""
    report(recordings)
    print(f"\n{tokens_per_pass(recordings)}")


def tokens_per_pass(recordings: Sequence[Recording]) -> str:
    """Return the tokens per pass with drafts while the middles were written, by kind of hole."""
    parts = []
    for kind in (*KINDS, "all"):
        some = [each for each in recordings if kind in {each.kind, "all"} and each.passes]
        if some:
            parts.append(
                f"{kind} {sum(len(r.texts) + r.ended for r in some) / sum(r.passes for r in some):.2f}"
            )
    return "tokens a pass while writing: " + ", ".join(parts)


def truth(args: argparse.Namespace) -> None:
    """Print how often the rules end the file's own text where the hole ends, too early, too late, or never.

    The rest of the file follows the true middle, as if a model wrote the file and never stopped by itself.
    """
    packages = {name: wanted(read_installed(name)) for name in PACKAGES}
    found: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for kind, path, request, middle in holes(packages, args.spans, args.seed):
        endings = make_endings(dataclasses.replace(request.with_sampling(stop="auto"), path=path))
        assert endings is not None
        text = middle + request.suffix[:800]
        end = next((end for size in range(1, len(text) + 1) if (end := endings.end(text[:size]))), None)
        kept, whole = len(text[: end.chars].rstrip()) if end else 0, len(middle.rstrip())
        found[kind][
            "not at all"
            if end is None
            else "exactly"
            if kept == whole
            else "early"
            if kept < whole
            else "late"
        ] += 1
    print("| holes | exactly | early | late | not at all |\n" + "|---" * 5 + "|")
    for kind, counts in found.items():
        shares = [
            f"{counts[name] / max(1, counts.total()):.1%}"
            for name in ("exactly", "early", "late", "not at all")
        ]
        print(f"| {kind} ({counts.total()}) | {' | '.join(shares)} |")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    making = commands.add_parser("make", help="fill holes and write what the model wrote")
    making.add_argument("file", type=Path)
    making.add_argument("--card", default="nano")
    making.add_argument("--models-dir", type=Path)
    making.add_argument(
        "--prompt-tokens", type=int, default=0, help="of a prompt at most; 0: as the card says"
    )
    making.add_argument("--layout", choices=("psm", "spm", "spm_tail"), help="instead of the card's")
    making.add_argument("--no-heal", action="store_true", help="no token healing, whatever the card says")
    making.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=tuple(KINDS))
    making.add_argument("--spans", type=int, default=200)
    making.add_argument("--seed", type=int, default=0)
    making.set_defaults(run=make)
    reading = commands.add_parser("report", help="end what was written by each set of rules")
    reading.add_argument("files", type=Path, nargs="+")
    reading.set_defaults(run=lambda args: show([each for file in args.files for each in read(file)]))
    checking = commands.add_parser("truth", help="where the rules end the file's own text")
    checking.add_argument("--spans", type=int, default=1200)
    checking.add_argument("--seed", type=int, default=0)
    checking.set_defaults(run=truth)
    args = parser.parse_args()
    args.run(args)


def read(file: Path) -> list[Recording]:
    """The recordings of one file."""
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return [Recording(**{**row, "texts": tuple(row["texts"])}) for row in rows]


if __name__ == "__main__":
    main()
