"""Measures a canvas adapter in the engine, on development spans, in drafts of the ar route and on dllm.

Usage: ``python -m models.training.canvas_measure --model CARD --adapter FILE --spans 20``. Everything is at
temperature 0 and compared with plain decoding of the ar route.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fimserver.canvas_card import Canvas
from fimserver.cards import Card, get_card, model_folder
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


SCHEDULES = (
    "leftmost:1.0", "leftmost:0.9", "leftmost:0.7", "threshold:0.9", "entropy_bound:0.1",
    "checked", "checked:0.05", "checked:0.005",
)  # fmt: skip


@dataclass(frozen=True)
class Span:
    """A request with the true middle and that of plain decoding."""

    request: Request
    middle: str
    text: str
    tokens: int


@dataclass(frozen=True)
class Outcome:
    """Totals over spans: tokens, passes without prefill, and seconds of wall time and of this thread.

    Also the number of texts equal to plain decoding, and to the true middle without blanks at its ends.
    """

    name: str
    tokens: int
    passes: int
    seconds: float
    cpu_seconds: float
    equal: int
    exact: int
    spans: int

    def line(self) -> str:
        """One row of a table."""
        rate = self.tokens / max(1, self.passes)
        time_ms, cpu_ms = (1000 * s / max(1, self.tokens) for s in (self.seconds, self.cpu_seconds))
        as_plain, as_written = self.equal / self.spans, self.exact / self.spans
        return (
            f"{self.name:28} tokens {self.tokens:5}  a pass {rate:5.2f}  ms a token {time_ms:6.1f} (CPU"
            f" {cpu_ms:6.1f})  as plain {as_plain:.3f}  as written {as_written:.3f}"
        )


def requests(
    texts: Sequence[str],
    count: int,
    sampling: Sampling,
    seed: int,
    kinds: Sequence[str] = ("lines", "line_tail"),
) -> Iterator[tuple[Request, str]]:
    """Cursors in development files with what is written there, one kind of hole after the other."""
    rng = random.Random(seed)
    for number in range(count):
        text = rng.choice(texts)
        start, end = KINDS[kinds[number % len(kinds)]][0](text, rng)
        prefix, suffix = text[max(0, start - 1200) : start], text[end : end + 500]
        yield Request(prefix, suffix, sampling=sampling), text[start:end]


def run(name: str, engine: Engine, spans: Sequence[Span]) -> Outcome:
    """Complete every span with an engine whose prompt is warm."""
    return sum_up(name, [complete(name, engine, span) for span in spans])


def complete(name: str, engine: Engine, span: Span) -> Outcome:
    """Complete one span."""
    engine.warm(span.request, Deadline())
    started, cpu_started = time.perf_counter(), time.thread_time()
    chunks = list(engine.complete(span.request, Deadline()))
    seconds, cpu_seconds = time.perf_counter() - started, time.thread_time() - cpu_started
    text = "".join(chunk.text for chunk in chunks)
    passes = chunks[-1].forwards - chunks[-1].prefill.forwards
    exact = text.strip() == span.middle.strip()
    return Outcome(
        name, chunks[-1].tokens, passes, seconds, cpu_seconds, int(text == span.text), int(exact), 1
    )


def sum_up(name: str, outcomes: Sequence[Outcome]) -> Outcome:
    """Totals of the outcomes of one arm."""
    columns = zip(*((dataclasses.astuple(outcome)[1:]) for outcome in outcomes), strict=True)
    return Outcome(name, *(sum(column) for column in columns))


def plain(engine: Engine, asked: Sequence[tuple[Request, str]]) -> list[Span]:
    """Decode the requests without drafts; empty middles are left out."""
    spans = []
    for request, middle in asked:
        chunks: list[Chunk] = list(engine.complete(request, Deadline()))
        text = "".join(chunk.text for chunk in chunks)
        if text:
            spans.append(Span(request, middle, text, chunks[-1].tokens))
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
    for schedule in SCHEDULES:
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
    parser.add_argument("--kinds", default="lines,line_tail", help="of holes: " + ", ".join(KINDS))
    parser.add_argument("--stop", default="none", choices=["none", "auto", "line"])
    parser.add_argument("--corpus", type=Path, default=CACHE / "valid.txt")
    parser.add_argument("--quantize", default=Settings().quantize)
    parser.add_argument(
        "--arms", default="", help="only arms whose name contains one of these, separated by ;"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    card = with_adapter(get_card(args.model), args.adapter, args.block)
    loaded = load(card, model_folder(card, args.models_dir), torch.device("cpu"), args.quantize)
    runtime = make_runtime(loaded, Settings(models_dir=args.models_dir))
    texts = args.corpus.read_text("utf-8").split(SEPARATOR)
    sampling = Sampling(max_tokens=args.max_tokens, stop=args.stop)
    asked = list(requests(texts, args.spans, sampling, 7, args.kinds.split(",")))
    spans = plain(make_ar(DraftContext(runtime, Settings(drafter="none"))), asked)
    arms = {
        name: engine
        for name, engine in engines(runtime, {"models_dir": args.models_dir})
        if any(arm in name for arm in args.arms.split(";"))
    }
    # In turns, so that all arms meet the same load of the machine.
    found = [[complete(name, engine, span) for name, engine in arms.items()] for span in spans]
    outcomes = [sum_up(rows[0].name, rows) for rows in zip(*found, strict=True)]
    for outcome in outcomes:
        print(outcome.line(), flush=True)
    if args.out:
        args.out.write_text(json.dumps([vars(outcome) for outcome in outcomes], indent=1))


if __name__ == "__main__":
    main()
