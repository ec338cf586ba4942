"""Knows how good a nano model is on files it has not seen. Knows nothing of training.

Usage: ``python -m models.training.evaluate --model models/nano --spans 400``. Prints Markdown tables by route and length
bucket (for the model card) and twenty completions. Baseline ``ngram``: after the longest string of tokens that the end
of the prefix shares with an earlier place of the file, copy what stood there to the end of its line.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
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
from fimserver.engine.engines import Engine, make_ar, make_dllm, make_runtime
from fimserver.engine.load import Loaded, load
from fimserver.settings import Settings
from fimserver.types import Budget, Request
from models.training.corpus import CACHE
from models.training.holes import Hole, cut
from models.training.rows import CANVAS, IGNORE, MIDDLE_PART, Layout, Row, RowMaker, collate
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


def engine_fill(engine: Engine) -> Fill:
    """A route as a filler."""

    def fill(hole: Hole) -> tuple[str, int]:
        request = Request(hole.text[: hole.start], hole.text[hole.end :], max_tokens=64)
        chunks = list(engine.complete(request, Budget()))
        return "".join(c.text for c in chunks), chunks[-1].forwards

    return fill


def ngram_fill(maker: RowMaker) -> Fill:
    """The baseline without a model."""

    def fill(hole: Hole) -> tuple[str, int]:
        prefix = maker.encode(hole.text[: hole.start][-20_000:])
        file = prefix + maker.encode(hole.text[hole.end :][:20_000])
        for length in range(min(16, len(prefix)), 0, -1):
            tail = prefix[-length:]
            for at in range(len(prefix) - length - 1, -1, -1):
                if file[at : at + length] == tail:
                    copied = maker.tokenizer.decode(file[at + length : at + length + 64], skip_special_tokens=False)
                    return copied.split("\n", 1)[0], 0
        return "", 0

    return fill


@torch.inference_mode()
def bits(loaded: Loaded, maker: RowMaker, hole: Hole, rng: random.Random) -> tuple[float, float]:
    """Bits of a middle under the ar route, and an upper bound of them under the dllm route.

    The bound is the any-order one: blocks of slots, each n times the mean loss at a uniform number of masks, four draws.
    """
    layout = maker.layout
    context, middle = maker.tokens(hole, rng)
    size = 16
    row = maker.row(hole, random.Random(0))
    nats, draws = 0.0, 4
    for start in range(0, len(middle), size):
        slots = (middle[start:] + [maker.eot] * size)[:size]
        canvases = [rng.sample(range(size), rng.randint(1, size)) for _ in range(draws)]
        ids, targets = [], []
        for chosen in canvases:
            ids += [maker.mask if i in chosen else t for i, t in enumerate(slots)]
            targets += [t if i in chosen else IGNORE for i, t in enumerate(slots)]
        positions = list(range(len(context) + start, len(context) + start + size)) * draws
        limit = [len(context) - 1 + start] * size * draws
        group = [1 + i // size for i in range(size * draws)]
        sequence = layout.sequence
        changed = Row(
            row.ids[:sequence] + ids,
            row.positions[:sequence] + positions,
            row.limit[:sequence] + limit,
            row.group[:sequence] + group,
            row.part,
            row.targets[:sequence] + targets,
        )
        loss, part = _losses(loaded, changed)
        canvas_loss = loss[part == CANVAS].view(draws, size)
        nats += sum(size * float(canvas_loss[i].sum()) / len(chosen) for i, chosen in enumerate(canvases)) / draws
        ar = float(loss[part == MIDDLE_PART].sum())
    return ar / 0.6931, nats / 0.6931


def _losses(loaded: Loaded, row: Row) -> tuple[torch.Tensor, torch.Tensor]:
    batch = collate([row])
    logits = loaded.model(input_ids=batch.ids, position_ids=batch.positions, attention_mask=batch.mask, use_cache=False).logits[
        0
    ]
    return F.cross_entropy(logits, batch.targets[0], ignore_index=IGNORE, reduction="none"), batch.part[0]


def table(scores: dict[str, list[Score]]) -> str:
    """Markdown, a line per filler and bucket."""
    lines = ["| filler | tokens | n | exact | similarity | parses | ms p50 | forwards |", "|---|---|---|---|---|---|---|---|"]
    for name, rows in scores.items():
        by_bucket: dict[str, list[Score]] = defaultdict(list)
        for row in rows:
            by_bucket[row.bucket].append(row)
        for bucket, group in [*sorted(by_bucket.items(), key=lambda item: int(item[0].split("-")[0])), ("all", rows)]:
            lines.append(f"| {name} | {bucket} | {len(group)} | {_summary(group)} |")
    return "\n".join(lines)


def _summary(group: list[Score]) -> str:
    ms = sorted(s.ms for s in group)[len(group) // 2]
    mean = [
        sum(values) / len(group) for values in zip(*((s.exact, s.similarity, s.parses, s.forwards) for s in group), strict=True)
    ]
    return f"{mean[0]:.1%} | {mean[1]:.3f} | {mean[2]:.1%} | {ms:.0f} | {mean[3]:.1f}"


def show(samples: Iterable[tuple[Hole, dict[str, str]]]) -> str:
    """Completions to be judged by eye."""
    blocks = []
    for number, (hole, middles) in enumerate(samples, 1):
        before, after = hole.text[: hole.start].rsplit("\n", 3), hole.text[hole.end :].split("\n", 2)
        lines = [f"{number}. ({hole.kind})", "", "```", "\n".join(before[-3:]) + "▮" + "\n".join(after[:2]), "```", ""]
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
    maker = RowMaker(loaded.vocabulary._tokenizer, Layout())  # noqa: SLF001 - the same tokenizer, raw
    fillers = {
        "ar": engine_fill(make_ar(runtime, settings)),
        "dllm": engine_fill(make_dllm(runtime, settings)),
        "ngram": ngram_fill(maker),
    }
    scores: dict[str, list[Score]] = {name: [] for name in fillers}
    samples: list[tuple[Hole, dict[str, str]]] = []
    rng, totals = random.Random(args.seed), [0.0, 0.0, 0]
    for hole, bucket in spans(read_texts(args.corpus, "valid"), maker, args.spans, args.seed):
        middles: dict[str, str] = {}
        for name, fill in fillers.items():
            result, middles[name] = score(hole, bucket, fill)
            scores[name].append(result)
        samples.append((hole, middles))
        ar_bits, dllm_bits = bits(loaded, maker, hole, rng)
        totals = [totals[0] + ar_bits, totals[1] + dllm_bits, totals[2] + len(hole.middle.encode())]
    print(table(scores))
    print(f"\nbits per byte of the middle: ar {totals[0] / totals[2]:.3f}, dllm at most {totals[1] / totals[2]:.3f}")
    if args.samples:
        random.Random(1).shuffle(samples)
        print("\n" + show(samples[: args.samples]))
    if args.json:
        args.json.write_text(json.dumps({name: [asdict(s) for s in rows] for name, rows in scores.items()}))


if __name__ == "__main__":
    main()
