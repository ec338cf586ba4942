"""Measure how many more tokens are accepted with several drafts of a canvas adapter, as branches of a pass.

python -m bench.canvas_branches SPANS --adapter FILE [--kind one|several] [--out FILE]

At every token of what plain decoding writes, one group of masks is run, and drafts are made from it: the
likeliest one; with the second likeliest token at the places where it is least sure (``second``); and drawn
at temperature 1 (``drawn``). What counts is the longest draft that the coder's own greedy text agrees with.
Intervals are over spans. What branches cost: ``pass_costs.json``, printed with the table.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch

from bench.canvas_drafts import coder_parser, coder_runtime, make_arm, request_of
from bench.intervals import bootstrap, ratio_of_sums
from bench.quality import ONE_LINE, Span, read_spans
from fimserver.engine.autoregressive import Autoregressive
from fimserver.engine.speculation.lookahead import Lookahead, Outlook, Prepared
from fimserver.lengths import common_prefix
from fimserver.types import Deadline

MASKS = 4
ROWS = 8
DRAFTS = 3
WAYS = ("second", "drawn")
Choice = Callable[[int, torch.Tensor], int]  # place in the draft and logits (V,) -> token


@dataclass(frozen=True)
class Row:
    """Of one span: places where drafts were made, and accepted tokens of the best of the first k drafts."""

    span: str
    places: int
    second: tuple[int, ...]
    drawn: tuple[int, ...]


def draft(ahead: Lookahead, prepared: Prepared, token: int, choose: Choice) -> tuple[list[int], list[float]]:
    """The tokens of one draft after ``token``, and their probabilities."""
    tokens, sure = list[int](), list[float]()
    for place, (hidden, row) in enumerate(zip(prepared.hidden, prepared.logits, strict=True)):
        logits = ahead.network.after(hidden, row, token)
        token = choose(place, logits)
        tokens.append(token)
        sure.append(float(logits.softmax(-1)[token]))
    return tokens, sure


def likeliest(_place: int, logits: torch.Tensor) -> int:
    return int(logits.argmax())


def second_at(wanted: int) -> Choice:
    """The second likeliest token at one place, the likeliest elsewhere."""
    return lambda place, logits: int(logits.topk(2).indices[int(place == wanted)])


def drawn(generator: torch.Generator) -> Choice:
    return lambda _place, logits: int(torch.multinomial(logits.softmax(-1), 1, generator=generator))


def accepted(
    ahead: Lookahead, prepared: Prepared, text: Sequence[int], generator: torch.Generator
) -> dict[str, list[int]]:
    """Accepted tokens of the best of the first 1, 2, … drafts after ``text[0]``, by how they are made."""
    first, sure = draft(ahead, prepared, text[0], likeliest)
    places = sorted(range(len(sure)), key=lambda place: sure[place])
    found: dict[str, list[int]] = {}
    for way in WAYS:
        best = [common_prefix(first, text[1:])]
        for number in range(DRAFTS - 1):
            choose = second_at(places[number]) if way == "second" else drawn(generator)
            other, _ = draft(ahead, prepared, text[0], choose)
            best.append(max(best[-1], common_prefix(other, text[1:])))
        found[way] = best
    return found


@torch.inference_mode()
def measure(engine: Autoregressive, plain: Autoregressive, span: Span) -> Row | None:
    """Drafts at every token of one span; ``None`` where its middle is too short for one."""
    request = request_of(span)
    made = [chunk.round for chunk in plain.complete(request, Deadline()) if chunk.round]
    ids = [made_round.token for made_round in made]
    ahead = engine.speculation.lookahead
    assert ahead
    state = engine.decode_state(request, Deadline())
    engine.cache.prefill(state.prompt, Deadline(), want_logits=False)
    generator = torch.Generator().manual_seed(0)
    outlook = Outlook(ROWS, (0,), MASKS)
    sums = {way: [0] * DRAFTS for way in WAYS}
    places = range(len(ids) - 2)
    for place in places:
        state.ids = ids[: place + 1]
        ahead.end(state, 1, outlook, ahead.start(state, (), outlook))
        prepared = ahead.text.groups[place + 1]
        for way, best in accepted(ahead, prepared, ids[place + 1 :], generator).items():
            sums[way] = [a + b for a, b in zip(sums[way], best, strict=True)]
    if not places:
        return None
    return Row(span.id, len(places), tuple(sums["second"]), tuple(sums["drawn"]))


def table(rows: Sequence[Row]) -> str:
    """A table in Markdown: accepted tokens of a draft by their number, and what the others add."""
    lines = ["| drafts | made by | accepted drafted tokens | more than one draft |", "|---" * 4 + "|"]
    places = [row.places for row in rows]
    for way in WAYS:
        for count in range(DRAFTS):
            best = [getattr(row, way)[count] for row in rows]
            more = [a - getattr(row, way)[0] for a, row in zip(best, rows, strict=True)]
            value, gain = (bootstrap(ratio_of_sums, column, places).text() for column in (best, more))
            lines.append(f"| {count + 1} | {way} | {value} | {gain} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table; ``--out`` gets the rows as JSON."""
    parser = coder_parser(__doc__)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--kind", choices=["one", "several"], default="one", help="lines of the middles")
    args = parser.parse_args()
    runtime = coder_runtime(args)
    engine = make_arm(runtime, f"lookahead,masks={MASKS}", args.adapter, 0.0)
    plain = make_arm(runtime, "none", "", 0.0)
    spans = [s for s in read_spans(args.spans) if (s.kind in ONE_LINE) == (args.kind == "one")]
    rows = list[Row]()
    for number, span in enumerate(spans[: args.most or len(spans)]):
        row = measure(engine, plain, span)
        rows += [row] if row else []
        print(f"{number + 1} spans", file=sys.stderr, flush=True)
    if args.out:
        args.out.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    print(f"{len(rows)} spans, {sum(row.places for row in rows)} drafts\n\n{table(rows)}")
    ms = engine.speculation.policy.costs.ms
    print("\nms of a pass:", {f"{b}x{r}": round(t, 1) for (b, r), t in ms.items() if r <= ROWS})


if __name__ == "__main__":
    main()
