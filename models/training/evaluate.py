"""Evaluation of a nano model on files that it was not trained on.

Usage: ``python -m models.training.evaluate --model models/nano --spans 400``. Prints Markdown tables by route
and length bucket (for the model card) and twenty completions. Baseline ``ngram``: find the place of the file
(prefix or suffix) that ends like the prefix for the most characters, and copy what follows it, as many lines
as the middle really has.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import math
import random
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from fimserver.cards import get_card
from fimserver.engine.engines import Engine, make_ar, make_dllm
from fimserver.engine.load import Loaded, load
from fimserver.engine.prompts.vocabulary import read_tokenizer
from fimserver.engine.runtime import DraftContext, Runtime, make_runtime
from fimserver.settings import Settings
from fimserver.types import Deadline, Request, Sampling
from models.training.corpus import CACHE
from models.training.holes import Hole, cut
from models.training.rows import CANVAS, CONTEXT, IGNORE, MIDDLE_PART, Layout, Row, RowMaker, collate
from models.training.train import read_texts

BUCKETS = ((1, 8), (9, 16), (17, 32), (33, 64))
Fill = Callable[[Hole], tuple[str, int]]  # the middle and the forward passes it took


@dataclass(frozen=True)
class Score:
    """One span on one route."""

    bucket: str
    exact: bool
    similarity: float
    parses: bool
    ms: float
    forwards: int


def spans(texts: list[str], maker: RowMaker, count: int, seed: int) -> Iterator[tuple[Hole, str]]:
    """Seeded holes of files that parse, with their length bucket; the same number from every bucket."""
    rng = random.Random(seed)
    left = {f"{low}-{high}": count // len(BUCKETS) for low, high in BUCKETS}
    while any(left.values()):
        text = rng.choice(texts)
        hole = cut(text, rng)
        length = len(maker.encode(hole.middle))
        bucket = next((f"{low}-{high}" for low, high in BUCKETS if low <= length <= high), "")
        if left.get(bucket, 0) > 0 and hole.middle.strip() and parses(text):
            left[bucket] -= 1
            yield hole, bucket


def parses(text: str) -> bool:
    """Whether Python accepts the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(text)
        except (SyntaxError, ValueError):
            return False
    return True


def score(hole: Hole, bucket: str, fill: Fill) -> tuple[Score, str]:
    """Fill a hole and compare."""
    started = time.perf_counter()
    middle, forwards = fill(hole)
    ms = (time.perf_counter() - started) * 1000
    similarity = difflib.SequenceMatcher(None, middle.strip(), hole.middle.strip(), autojunk=False).ratio()
    valid = parses(hole.text[: hole.start] + middle + hole.text[hole.end :])
    return Score(bucket, middle.rstrip() == hole.middle.rstrip(), similarity, valid, ms, forwards), middle


def engine_fill(engine: Engine, runtime: Runtime) -> Fill:
    """Make a filler of a route, with an empty cache."""

    def fill(hole: Hole) -> tuple[str, int]:
        if runtime.cache:
            runtime.cache.clear()
        request = Request(hole.text[: hole.start], hole.text[hole.end :], sampling=Sampling(max_tokens=64))
        chunks = list(engine.complete(request, Deadline()))
        return "".join(c.text for c in chunks), chunks[-1].forwards

    return fill


def ngram_fill(hole: Hole) -> tuple[str, int]:
    """Fill a hole by the baseline without a model, which gets the number of lines of the middle."""
    copied = longest_match(hole.text[: hole.start], hole.text[hole.end :])
    return "\n".join(copied.split("\n")[: 1 + hole.middle.count("\n")]), 0


def longest_match(prefix: str, suffix: str, limit: int = 80) -> str:
    """Text after the place (earlier ones first) that shares the longest ending with the prefix."""
    for length in range(min(limit, len(prefix)), 0, -1):
        tail = prefix[-length:]
        if (at := prefix.rfind(tail, 0, len(prefix) - 1)) >= 0:
            return prefix[at + length :]
        if (at := suffix.find(tail)) >= 0:
            return suffix[at + length :]
    return ""


@torch.inference_mode()
def bits(loaded: Loaded, maker: RowMaker, hole: Hole, rng: random.Random) -> tuple[float, float]:
    """Bits of a whole middle and its end under the ar route, and an upper bound of them under the dllm route.

    The bound is the any-order one: blocks of slots, each n times the mean loss at a uniform number of masks,
    four draws.
    """
    size, draws = 16, 4
    context, middle = maker.tokens(hole, random.Random(0))
    sequence = context + middle
    nats = ar = 0.0
    for start in range(0, len(middle), size):
        slots = (middle[start:] + [maker.eot] * size)[:size]
        canvases = [rng.sample(range(size), rng.randint(1, size)) for _ in range(draws)]
        row = Row(
            sequence + [maker.mask if i in chosen else t for chosen in canvases for i, t in enumerate(slots)],
            [
                *range(len(sequence)),
                *(list(range(len(context) + start, len(context) + start + size)) * draws),
            ],
            [*range(len(sequence)), *([len(context) - 1 + start] * size * draws)],
            [0] * len(sequence) + [1 + i // size for i in range(size * draws)],
            [CONTEXT] * (len(context) - 1) + [MIDDLE_PART] * (len(middle) + 1) + [CANVAS] * size * draws,
            [*sequence[1:], IGNORE]
            + [t if i in chosen else IGNORE for chosen in canvases for i, t in enumerate(slots)],
        )
        loss, part = _losses(loaded, row)
        canvas_loss = loss[part == CANVAS].view(draws, size)
        nats += (
            sum(size * float(canvas_loss[i].sum()) / len(chosen) for i, chosen in enumerate(canvases)) / draws
        )
        ar = float(loss[part == MIDDLE_PART].sum())
    return ar / math.log(2), nats / math.log(2)


def _losses(loaded: Loaded, row: Row) -> tuple[torch.Tensor, torch.Tensor]:
    batch = collate([row])
    logits = loaded.model(
        input_ids=batch.ids, position_ids=batch.positions, attention_mask=batch.mask, use_cache=False
    ).logits[0]
    return F.cross_entropy(logits, batch.targets[0], ignore_index=IGNORE, reduction="none"), batch.part[0]


def table(scores: dict[str, list[Score]]) -> str:
    """Return a Markdown table with a line per filler and bucket."""
    lines = [
        "| route | tokens | n | exact | similarity | parses | ms p50 | forwards |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in scores.items():
        by_bucket: dict[str, list[Score]] = defaultdict(list)
        for row in rows:
            by_bucket[row.bucket].append(row)
        for bucket, group in [
            *sorted(by_bucket.items(), key=lambda item: int(item[0].split("-")[0])),
            ("all", rows),
        ]:
            lines.append(f"| {name} | {bucket} | {len(group)} | {_summary(group)} |")
    return "\n".join(lines)


def _summary(group: list[Score]) -> str:
    ms = sorted(s.ms for s in group)[len(group) // 2]
    mean = [
        sum(values) / len(group)
        for values in zip(*((s.exact, s.similarity, s.parses, s.forwards) for s in group), strict=True)
    ]
    return f"{mean[0]:.1%} | {mean[1]:.3f} | {mean[2]:.1%} | {ms:.0f} | {mean[3]:.1f}"


def show(samples: Iterable[tuple[Hole, dict[str, str]]]) -> str:
    """Format completions for reading."""
    blocks = []
    for number, (hole, middles) in enumerate(samples, 1):
        before, after = hole.text[: hole.start].rsplit("\n", 3), hole.text[hole.end :].split("\n", 2)
        lines = [
            f"{number}. ({hole.kind})",
            "",
            "```",
            "\n".join(before[-3:]) + "▮" + "\n".join(after[:2]),
            "```",
            "",
        ]
        lines += [f"   - {name}: `{text!r}`" for name, text in {"truth": hole.middle, **middles}.items()]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def main() -> None:
    """Evaluate one folder of weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/nano"))
    parser.add_argument("--corpus", type=Path, default=CACHE)
    parser.add_argument("--spans", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=0, help="print so many completions")
    parser.add_argument("--json", type=Path, help="write the scores here too")
    args = parser.parse_args()
    card = get_card("nano").model_copy(update={"files": {}})
    loaded = load(card, args.model, torch.device("cpu"))
    runtime, settings = make_runtime(loaded, Settings()), Settings()
    maker = RowMaker(read_tokenizer(args.model, card), Layout(middle=128))
    fillers = {
        "ar": engine_fill(make_ar(DraftContext(runtime, settings)), runtime),
        "dllm": engine_fill(make_dllm(DraftContext(runtime, settings)), runtime),
        "ngram": ngram_fill,
    }
    scores: dict[str, list[Score]] = {name: [] for name in fillers}
    samples: list[tuple[Hole, dict[str, str]]] = []
    rng, sizes = random.Random(args.seed), Sizes()
    for hole, bucket in spans(read_texts(args.corpus, "valid"), maker, args.spans, args.seed):
        middles: dict[str, str] = {}
        for name, fill in fillers.items():
            result, middles[name] = score(hole, bucket, fill)
            scores[name].append(result)
        samples.append((hole, middles))
        sizes.add(bucket, len(hole.middle.encode()), bits(loaded, maker, hole, rng))
    print(table(scores) + "\n\n" + sizes.table())
    if args.samples:
        random.Random(1).shuffle(samples)
        print("\n" + show(samples[: args.samples]))
    if args.json:
        args.json.write_text(json.dumps({name: [asdict(s) for s in rows] for name, rows in scores.items()}))


class Sizes:
    """Bits per byte of the middles, by length bucket."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])

    def add(self, bucket: str, size: int, both: tuple[float, float]) -> None:
        for name in (bucket, "all"):
            self._sums[name] = [a + b for a, b in zip(self._sums[name], (size, *both), strict=True)]

    def table(self) -> str:
        lines = ["| bits per byte | ar | dllm, at most |", "|---|---|---|"]
        order = sorted(self._sums, key=lambda name: int(name.split("-")[0]) if name != "all" else 999)
        for name in order:
            size, ar, dllm = self._sums[name]
            lines.append(f"| {name} | {ar / size:.3f} | {dllm / size:.3f} |")
        return "\n".join(lines)


if __name__ == "__main__":
    main()
