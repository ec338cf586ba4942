"""Measure accepted tokens a pass, by place, of canvas adapters and other drafters on spans of files.

python -m bench.canvas_drafts SPANS --arm NAME=DRAFTERS[@ADAPTER]… [--row SHARE] [--out FILE]

SPANS is a file of ``bench.quality cut``. An arm drafts with what ``--drafter`` takes, on the adapter in a
file (``models.training.canvas_export`` makes one of a checkpoint). Greedy; every arm must write what plain
decoding writes. ``--row``: each row of a pass after the first is priced at so much of a pass, so that
drafters propose wherever they can; 0: what rows cost on this machine. Intervals are over spans, and
differences paired with the first arm. Times mean something on idle cores alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch

from bench.intervals import bootstrap, ratio_of_sums
from bench.quality import ONE_LINE, Span, read_spans
from fimserver.cards import Card, get_card, model_folder
from fimserver.engine.autoregressive import Autoregressive
from fimserver.engine.checked_canvas import priced_by_row
from fimserver.engine.engines import make_ar
from fimserver.engine.load import load
from fimserver.engine.runtime import DraftContext, Runtime, make_runtime
from fimserver.settings import Settings
from fimserver.types import Chunk, Deadline, Request, Sampling

PLACES = 4
LAST = ("rows a pass", "ms to the first token", "ms a pass", "ms a token", "time by the first arm's", "text")
GROUPS = {"one line": True, "several lines": False}
MOST_TOKENS = {True: 24, False: 48}


@dataclass(frozen=True)
class Row:
    """What one arm did in one span.

    ``accepted``: passes that accepted a first, second, … drafted token; ``rows`` of all passes.
    """

    arm: str
    span: str
    one_line: bool
    tokens: int
    passes: int
    accepted: tuple[int, ...]
    rows: int
    opening_ms: float  # until the first token
    ms: float
    equal: bool


def rate_difference(
    tokens: torch.Tensor, passes: torch.Tensor, to: torch.Tensor, to_passes: torch.Tensor
) -> torch.Tensor:
    """Tokens a pass of one arm less those of another."""
    return ratio_of_sums(tokens, passes) - ratio_of_sums(to, to_passes)


def read_arm(text: str) -> tuple[str, str, str]:
    """Name, drafters and adapter file ("": none) of ``NAME=DRAFTERS[@ADAPTER]``.

    Raises ``ArgumentTypeError``.
    """
    name, _, rest = text.partition("=")
    drafters, _, adapter = rest.partition("@")
    if not name or not drafters:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DRAFTERS[@ADAPTER]: ngram=ngram is an arm")
    return name, drafters, adapter


def with_canvas(card: Card, adapter: str) -> Card:
    """The card with this adapter in its canvas. Raises ``SystemExit`` where it has no canvas."""
    if card.canvas is None:
        raise SystemExit(f"{card.name} has no [canvas]: an adapter needs one")
    return card.model_copy(update={"canvas": card.canvas.model_copy(update={"adapter": adapter})})


def make_arm(
    runtime: Runtime, drafters: str, adapter: str, row: float, other: Callable[[str], Runtime] | None = None
) -> Autoregressive:
    """The ar route with drafters, on the runtime's weights and cache; ``other`` loads a drafting coder."""
    if adapter:
        card = with_canvas(runtime.loaded.card, str(Path(adapter).resolve()))
        runtime = replace(runtime, loaded=replace(runtime.loaded, card=card))
    settings = Settings(drafter=drafters)
    engine = make_ar(DraftContext(runtime, settings, other) if other else DraftContext(runtime, settings))
    policy, ahead = engine.speculation.policy, engine.speculation.lookahead
    if row:
        policy.costs = priced_by_row(policy.costs, row)
    if row and ahead:
        ahead.mask_costs = {}
    return engine


def request_of(span: Span) -> Request:
    """One line is asked for where the span is one line."""
    one_line = span.kind in ONE_LINE
    sampling = Sampling(max_tokens=MOST_TOKENS[one_line], stop="line" if one_line else "auto")
    return Request(span.prefix, span.suffix, sampling=sampling)


def fill(name: str, engine: Autoregressive, span: Span, plain: str | None) -> tuple[Row, str]:
    """Complete one span, its prompt warm; the row, and the text. ``plain``: what plain decoding wrote."""
    request = request_of(span)
    engine.warm(request, Deadline())
    started = time.perf_counter()
    chunks, ends_ms = list[Chunk](), list[float]()
    for chunk in engine.complete(request, Deadline()):
        chunks.append(chunk)
        ends_ms.append(1000 * (time.perf_counter() - started))
    rounds = [c.round for c in chunks if c.round][1:]  # the first is the prompt's own
    text = "".join(chunk.text for chunk in chunks)
    accepted = tuple(sum(r.accepted > place for r in rounds) for place in range(PLACES))
    made = Row(
        name,
        span.id,
        span.kind in ONE_LINE,
        len(rounds) + sum(r.accepted for r in rounds),
        len(rounds),
        accepted,
        sum(r.shape[0] * r.shape[1] for r in rounds),
        round(ends_ms[0], 1),
        round(ends_ms[-1], 1),
        plain is None or text == plain,
    )
    return made, text


def measure(arms: Mapping[str, Autoregressive], spans: Sequence[Span]) -> list[Row]:
    """All arms on each span, in turn, so that they meet the same load. Middles of one token are left out."""
    rows = list[Row]()
    for number, span in enumerate(spans):
        plain: str | None = None
        for name, engine in arms.items():
            row, text = fill(name, engine, span, plain)
            plain = text if plain is None else plain
            rows += [row] if row.passes else []
        print(f"{number + 1} of {len(spans)} spans", file=sys.stderr, flush=True)
    return rows


def table(rows: Sequence[Row]) -> str:
    """A table in Markdown, for each group a line for each arm, over the spans that all arms have."""
    arms = list(dict.fromkeys(row.arm for row in rows))
    head = [
        "spans",
        "arm",
        "tokens a pass",
        "less the first arm's",
        *(f"place {i + 2}" for i in range(PLACES)),
    ]
    lines = [f"| {' | '.join([*head, *LAST])} |", "|---" * (len(head) + len(LAST)) + "|"]
    for group, one_line in GROUPS.items():
        found = {(row.arm, row.span): row for row in rows if row.one_line is one_line}
        spans = [s for arm, s in found if arm == arms[0] and all((other, s) in found for other in arms)]
        own = {arm: [found[arm, s] for s in spans] for arm in arms if spans}
        lines += [_line(group, arm, some, own[arms[0]]) for arm, some in own.items()]
    return "\n".join(lines)


def _line(group: str, arm: str, own: Sequence[Row], first: Sequence[Row]) -> str:
    """One arm's row; ``first``: the rows of the first arm, in the same order."""
    tokens, passes = [row.tokens for row in own], [row.passes for row in own]
    other = [row.tokens for row in first], [row.passes for row in first]
    places = [bootstrap(ratio_of_sums, [r.accepted[i] for r in own], passes) for i in range(PLACES)]
    cells = [
        f"{group} ({len(own)})",
        arm,
        bootstrap(ratio_of_sums, tokens, passes).text(),
        "" if own is first else bootstrap(rate_difference, tokens, passes, *other).text(),
        *(place.text() for place in places),
        f"{sum(row.rows for row in own) / sum(passes):.1f}",
        f"{sum(row.opening_ms for row in own) / len(own):.1f}",
        f"{sum(row.ms - row.opening_ms for row in own) / sum(passes):.1f}",
        f"{sum(row.ms for row in own) / (sum(tokens) + len(own)):.1f}",
        "" if own is first else bootstrap(ratio_of_sums, [r.ms for r in own], [r.ms for r in first]).text(),
        "all" if all(row.equal for row in own) else f"{sum(row.equal for row in own)} equal",
    ]
    return f"| {' | '.join(cells)} |"


def coder_parser(about: str | None) -> argparse.ArgumentParser:
    """A parser for a benchmark of spans on a coder: the spans, how many, the coder, and where rows go."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("spans", type=Path)
    parser.add_argument("--most", type=int, default=0, help="spans; 0: all")
    parser.add_argument("--card", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--models-dir", type=Path, default=Settings().models_dir)
    parser.add_argument("--quantize", default="int8")
    parser.add_argument("--out", type=Path)
    return parser


def coder_runtime(args: argparse.Namespace, name: str = "") -> Runtime:
    """Load the coder of ``coder_parser``'s arguments, or of the card ``name``, on the CPU."""
    card = get_card(name or args.card)
    loaded = load(card, model_folder(card, args.models_dir), torch.device("cpu"), args.quantize)
    return make_runtime(loaded, Settings(models_dir=args.models_dir))


def main() -> None:
    """Measure, print the table; ``--out`` gets the rows as JSON."""
    parser = coder_parser(__doc__)
    parser.add_argument("--arm", dest="arms", type=read_arm, action="append", required=True)
    parser.add_argument("--row", type=float, default=0.0)
    args = parser.parse_args()
    runtime = coder_runtime(args)
    arms = {"plain": make_arm(runtime, "none", "", 0.0)}
    other = cache(partial(coder_runtime, args))
    arms |= {
        name: make_arm(runtime, drafters, adapter, args.row, other) for name, drafters, adapter in args.arms
    }
    spans = read_spans(args.spans)
    rows = measure(arms, spans[: args.most or len(spans)])
    if args.out:
        args.out.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    print(table([row for row in rows if row.arm != "plain"]))


if __name__ == "__main__":
    main()
