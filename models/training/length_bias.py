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

from fimserver.ab.items.spans import cut_spans, read_spans
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

NEAR = 0.25  # a length that differs by no more than this share is the span's own
WITHIN = 5  # tokens


@dataclass(frozen=True)
class Probe:
    """A real middle's number of tokens, and the confidence of a masked canvas at each of ``LENGTHS``."""

    request: Request
    tokens: int
    confidence: tuple[float, ...]


def probe(engine: Diffusion, prefix: str, middle: str, suffix: str) -> Probe:
    """One pass for each length."""
    limit = engine.canvas_card.max_tokens
    request = Request(prefix, suffix, sampling=Sampling(limit, stop="none"))
    canvas = engine.open_canvas(request)
    found = [
        finish(masked_confidence(canvas, slots, engine.tokens.mask, engine.tokens.forbidden))
        for slots in LENGTHS
        if slots <= limit
    ]
    return Probe(request, len(engine.vocabulary.encode(middle)), tuple(found))


def fit(probes: Sequence[Probe]) -> tuple[float, ...]:
    """Mean confidence at each length over the spans that have another; over all where none has."""
    curve = []
    for i, slots in enumerate(LENGTHS[: len(probes[0].confidence)]):
        others = [p.confidence[i] for p in probes if abs(p.tokens - slots) > NEAR * slots]
        curve.append(fmean(others or [p.confidence[i] for p in probes]))
    return tuple(curve)


def errors(engine: Diffusion, probes: Sequence[Probe], curve: Bias) -> list[int]:
    """Tokens that the search is off, for each span."""
    tokens = engine.tokens
    limit = engine.canvas_card.max_tokens
    return [
        abs(
            finish(
                search_length(
                    engine.open_canvas(p.request),
                    tokens.mask,
                    tokens.forbidden,
                    limit,
                    Deadline(),
                    curve=curve,
                )
            )
            - p.tokens
        )
        for p in probes
    ]


def report(engine: Diffusion, spans: Sequence[tuple[str, str, str]]) -> str:
    """Errors with the published curve and with the refit, and the line for the card."""
    probes = [probe(engine, *span) for span in spans]
    first, second = probes[::2], probes[1::2]
    table = fit(first)
    lines = [f"fitted on {len(first)} spans, tried on {len(second)} others", ""]
    lines += ["| bias | mean error, tokens | within 5 |", "|---|---|---|"]
    for name, curve in (("published", bias), ("refit", bias_of(table))):
        found = errors(engine, second, curve)
        share = 100 * sum(error <= WITHIN for error in found) / len(found)
        lines.append(f"| {name} | {fmean(found):.1f} | {share:.0f} % |")
    return "\n".join([*lines, "", f"length_bias = [{', '.join(f'{value:.4f}' for value in table)}]"])


def main() -> None:
    """Parse options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("card", help="name or path of a card whose length is searched")
    parser.add_argument("spans", type=Path)
    parser.add_argument("--limit", type=int, default=200, help="spans")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    args = parser.parse_args()
    cut = cut_spans(args.spans, args.limit, 1) if args.spans.is_dir() else read_spans(args.spans, args.limit)
    engine = ModelPool(Settings(dllm_card=args.card, device=args.device, canvas_cache="none")).engine("dllm")
    if not isinstance(engine, Diffusion) or engine.canvas_card.length != "search":
        raise SystemExit(f"{args.card} does not search the length of its canvas")
    limit = min(engine.canvas_card.max_tokens, LENGTHS[-1])
    spans = [
        (span.prefix, span.middle, span.suffix)
        for span in cut.spans
        if 0 < len(engine.vocabulary.encode(span.middle)) <= limit
    ]
    if len(spans) < 4:
        raise SystemExit(f"{args.spans} has {len(spans)} middles of up to {limit} tokens: give more")
    print(report(engine, spans))


if __name__ == "__main__":
    main()
