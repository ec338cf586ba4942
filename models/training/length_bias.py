"""Refit of the length search to a model: the confidence that each length of a canvas has in any context.

The search divides the mean confidence of a masked canvas by a bias of its length (CAL, arXiv 2602.00476),
whose published curve was fitted on Dream. This measures the bias of another model on real spans, one half of
them, and says on the other half how far the found lengths are from those of the real middles.

Usage: ``python -m models.training.length_bias CARD SPANS``, with a folder of source files or a JSONL file of
prefix, suffix and middle. Prints the line for the card.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from fimserver.ab.items.spans import Span, cut_spans, read_spans
from fimserver.engine.denoising.canvas import CanvasForward
from fimserver.engine.denoising.canvas_length import (
    LENGTHS,
    Bias,
    bias,
    bias_of,
    masked_confidence,
    search_length,
)
from fimserver.engine.diffusion import Diffusion
from fimserver.engine.engines import ModelPool
from fimserver.engine.forward.passes import finish
from fimserver.settings import Settings
from fimserver.types import Deadline, Request, Sampling

NEAR = 0.25  # lengths that differ from a span's by no more than this share count as its own
WITHIN = 5  # tokens
FEWEST = 4  # spans


@dataclass(frozen=True)
class MaskedConfidence:
    """A middle's number of tokens, and the confidence of a masked canvas at each of ``LENGTHS``."""

    tokens: int
    confidence: tuple[float, ...]


class Found(NamedTuple):
    """A length that the search found, and the passes that it took."""

    tokens: int
    passes: int


def open_engine(card: str, device: str) -> Diffusion:
    """The engine of a card with a canvas, uncached. Raises ``SystemExit`` for another."""
    models = ModelPool(Settings(dllm_card=card, device=device, canvas_cache="none"))
    canvas = models.card("dllm").canvas
    if canvas is None or canvas.attention == "block":
        raise SystemExit(f"{card} has no canvas whose length can be searched: name another card")
    engine = models.engine("dllm")
    assert isinstance(engine, Diffusion)
    return engine


def read_middles(engine: Diffusion, spans: Path, limit: int, seed: int = 1) -> list[Span]:
    """Up to ``limit`` spans of a folder or a JSONL file whose middles fit the canvas.

    Raises ``SystemExit`` for too few.
    """
    cut = cut_spans(spans, limit, seed) if spans.is_dir() else read_spans(spans, limit)
    most = min(engine.canvas_card.max_tokens, LENGTHS[-1])
    fitting = [span for span in cut.spans if 0 < tokens_of(engine, span) <= most]
    if len(fitting) < FEWEST:
        raise SystemExit(f"{spans} has {len(fitting)} middles of up to {most} tokens: give more")
    return fitting


def tokens_of(engine: Diffusion, span: Span) -> int:
    """Tokens of a span's middle."""
    return len(engine.vocabulary.encode(span.middle))


def canvas_of(engine: Diffusion, span: Span) -> CanvasForward:
    """The canvas of a span, opened."""
    sampling = Sampling(engine.canvas_card.max_tokens, stop="none")
    canvas = engine.open_canvas(Request(span.prefix, span.suffix, sampling=sampling))
    canvas.open(Deadline())
    return canvas


def confidences(engine: Diffusion, span: Span) -> MaskedConfidence:
    """One pass for each length."""
    canvas = canvas_of(engine, span)
    found = [
        finish(masked_confidence(canvas, slots, engine.tokens.mask, engine.tokens.forbidden))
        for slots in LENGTHS
        if slots <= engine.canvas_card.max_tokens
    ]
    return MaskedConfidence(tokens_of(engine, span), tuple(found))


def fit(measured: Sequence[MaskedConfidence]) -> tuple[float, ...]:
    """Return the mean confidence at each length over spans of other lengths, or else over all spans."""
    curve = []
    for i, slots in enumerate(LENGTHS[: len(measured[0].confidence)]):
        others = [m.confidence[i] for m in measured if abs(m.tokens - slots) > NEAR * slots]
        curve.append(fmean(others or [m.confidence[i] for m in measured]))
    return tuple(curve)


def search(engine: Diffusion, span: Span, curve: Bias) -> Found:
    """The length that the search finds for a span."""
    canvas = canvas_of(engine, span)
    before = canvas.forwards
    tokens = engine.tokens
    limit = engine.canvas_card.max_tokens
    steps = search_length(canvas, tokens.mask, tokens.forbidden, limit, Deadline(), curve=curve)
    return Found(finish(steps), canvas.forwards - before)


def within(errors: Sequence[int]) -> float:
    """Percent of errors of up to ``WITHIN`` tokens."""
    return 100 * sum(error <= WITHIN for error in errors) / len(errors)


def report(engine: Diffusion, spans: Sequence[Span]) -> str:
    """Errors with the published curve and with the refit, and the line for the card."""
    first, second = spans[::2], spans[1::2]
    table = fit([confidences(engine, span) for span in first])
    lines = [f"fitted on {len(first)} spans, tried on {len(second)} others", ""]
    lines += ["| bias | mean error, tokens | within 5 |", "|---|---|---|"]
    for name, curve in (("published", bias), ("refit", bias_of(table))):
        errors = [abs(search(engine, span, curve).tokens - tokens_of(engine, span)) for span in second]
        lines.append(f"| {name} | {fmean(errors):.1f} | {within(errors):.0f} % |")
    return "\n".join([*lines, "", f"length_bias = [{', '.join(f'{value:.4f}' for value in table)}]"])


def main() -> None:
    """Parse options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("card", help="name or path of a card whose length is searched")
    parser.add_argument("spans", type=Path)
    parser.add_argument("--limit", type=int, default=200, help="spans")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    args = parser.parse_args()
    engine = open_engine(args.card, args.device)
    if engine.canvas_card.length != "search":
        raise SystemExit(f"{args.card} does not search the length of its canvas: name a card that does")
    print(report(engine, read_middles(engine, args.spans, args.limit)))


if __name__ == "__main__":
    main()
