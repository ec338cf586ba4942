"""What a canvas adapter is worth in the engine, on development spans.

Drafts of the ar route, and the dllm route itself.

Usage: ``python -m models.training.canvas_measure --model CARD --adapter FILE --spans 20``. Everything is at
temperature 0 and compared with plain decoding of the ar route.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fimserver.cards import Canvas, Card, get_card, model_folder
from fimserver.engine.engines import Engine, make_ar, make_dllm
from fimserver.engine.load import load
from fimserver.engine.runtime import DraftContext, Runtime, make_runtime
from fimserver.settings import Settings
from fimserver.types import Chunk, Deadline, Request, Sampling
from models.training.corpus import CACHE, SEPARATOR
from models.training.holes import KINDS

CANVAS = {
    "attention": "cached",
    "shift": True,
    "mask": "<|fim_pad|>",
    "end": "<|endoftext|>",
    "length": "end",
    "max_tokens": 128,
    "schedule": "leftmost",
    "forbidden": ("<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
                  "<|repo_name|>", "<|file_sep|>"),
}  # fmt: skip


@dataclass(frozen=True)
class Span:
    """A request, and what plain decoding made of it."""

    request: Request
    text: str
    tokens: int


@dataclass(frozen=True)
class Outcome:
    """Totals over spans: tokens, passes (prefill left out), seconds, and texts equal to plain decoding."""

    name: str
    tokens: int
    passes: int
    seconds: float
    equal: int
    spans: int

    def line(self) -> str:
        """One row of a table."""
        rate = self.tokens / max(1, self.passes)
        share, time_ms = self.equal / self.spans, 1000 * self.seconds / max(1, self.tokens)
        return (
            f"{self.name:28} tokens {self.tokens:5}  a pass {rate:5.2f}  ms a token {time_ms:6.1f}  as plain"
            f" {share:.2f}"
        )


def requests(texts: Sequence[str], count: int, max_tokens: int, seed: int) -> Iterator[Request]:
    """Cursors in development files: half in a line, half over several lines."""
    rng = random.Random(seed)
    for number in range(count):
        text = rng.choice(texts)
        start, end = KINDS["line_tail" if number % 2 else "lines"][0](text, rng)
        prefix, suffix = text[max(0, start - 1200) : start], text[end : end + 500]
        yield Request(prefix, suffix, sampling=Sampling(max_tokens=max_tokens, stop="none"))


def run(name: str, engine: Engine, spans: Sequence[Span]) -> Outcome:
    """Complete every span with an engine whose prompt is warm."""
    tokens = passes = equal = 0
    seconds = 0.0
    for span in spans:
        engine.warm(span.request, Deadline())
        started = time.perf_counter()
        chunks = list(engine.complete(span.request, Deadline()))
        seconds += time.perf_counter() - started
        tokens += chunks[-1].tokens
        passes += chunks[-1].forwards
        equal += "".join(chunk.text for chunk in chunks) == span.text
    return Outcome(name, tokens, passes, seconds, equal, len(spans))


def plain(engine: Engine, asked: Sequence[Request]) -> list[Span]:
    """What decoding without drafts makes of the requests; empty middles are left out."""
    spans = []
    for request in asked:
        chunks: list[Chunk] = list(engine.complete(request, Deadline()))
        text = "".join(chunk.text for chunk in chunks)
        if text:
            spans.append(Span(request, text, chunks[-1].tokens))
    return spans


def with_adapter(card: Card, adapter: str, block: int) -> Card:
    """The card with a canvas on this adapter."""
    canvas = Canvas(**CANVAS, adapter=adapter, block_tokens=block)  # type: ignore[arg-type]
    return card.model_copy(update={"canvas": canvas})


def engines(runtime: Runtime, settings: Mapping[str, object]) -> Iterator[tuple[str, Engine]]:
    """The arms of the comparison, by name."""
    for drafter in (
        "none",
        "ngram",
        "diffusion:self",
        "ngram,diffusion:self",
        "lookahead",
        "ngram,lookahead",
    ):
        made = Settings(drafter=drafter, **settings)  # type: ignore[arg-type]
        yield f"ar {drafter}", make_ar(DraftContext(runtime, made))
    for schedule in ("leftmost:1.0", "leftmost:0.9", "leftmost:0.7", "threshold:0.9", "entropy_bound"):
        made = Settings(schedule=schedule, **settings)  # type: ignore[arg-type]
        yield f"dllm {schedule}", make_dllm(DraftContext(runtime, made))


def main() -> None:
    """Measure every arm and print a table; ``--out`` gets it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--models-dir", type=Path, default=Settings().models_dir)
    parser.add_argument(
        "--adapter", required=True, help="file in the model's `adapters` folder or in models/adapters"
    )
    parser.add_argument("--block", type=int, default=8)
    parser.add_argument("--spans", type=int, default=20)
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--corpus", type=Path, default=CACHE / "valid.txt")
    parser.add_argument("--quantize", default=Settings().quantize)
    parser.add_argument("--arms", default="", help="only arms whose name contains this")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    card = with_adapter(get_card(args.model), args.adapter, args.block)
    loaded = load(card, model_folder(card, args.models_dir), torch.device("cpu"), args.quantize)
    runtime = make_runtime(loaded, Settings(models_dir=args.models_dir))
    asked = list(
        requests(args.corpus.read_text("utf-8").split(SEPARATOR), args.spans, args.max_tokens, seed=7)
    )
    spans = plain(make_ar(DraftContext(runtime, Settings(drafter="none"))), asked)
    outcomes = []
    for name, engine in engines(runtime, {"models_dir": args.models_dir}):
        if args.arms in name:
            outcomes.append(run(name, engine, spans))
            print(outcomes[-1].line(), flush=True)
    if args.out:
        args.out.write_text(json.dumps([vars(outcome) for outcome in outcomes], indent=1))


if __name__ == "__main__":
    main()
