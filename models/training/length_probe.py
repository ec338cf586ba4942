"""Fit of a length probe: a linear map from a canvas model's hidden states to the length of a middle.

Usage: ``python -m models.training.length_probe CARD SPANS [--out FILE]``, with a folder of source files or a
JSONL file of prefix, suffix and middle. Every span costs one pass over a canvas of masks. A ridge regression
learns the logarithm of the length; its strength is chosen by cross-validation over files. A quarter of the
files is held out: on it the probe is measured beside a constant and beside the calibrated search (CAL, arXiv
2602.00476) with its published bias and with one that was fitted to the same spans. Writes the file that the
card names in ``length_probe``.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from sklearn.linear_model import RidgeCV  # type: ignore[import-untyped]
from sklearn.model_selection import GroupKFold  # type: ignore[import-untyped]

from fimserver.ab.items.spans import Span
from fimserver.cards import model_folder
from fimserver.engine.denoising.canvas_length import bias, bias_of
from fimserver.engine.denoising.length_probe import LengthProbe, features, masked_states, save_probe
from fimserver.engine.diffusion import Diffusion
from fimserver.engine.forward.passes import finish
from fimserver.engine.load import weights_hash
from fimserver.settings import Settings
from models.training import length_bias
from models.training.length_bias import canvas_of, open_engine, read_middles, tokens_of, within

STRENGTHS = np.logspace(-1, 6, 15)  # of the ridge, for standardised features
HELD_OUT = 0.25  # of the files
FOLDS = 5
FEWEST_FILES = 8

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """A middle's number of tokens, and the features of the hidden states of the masks in its place."""

    span: Span
    tokens: int
    features: Matrix  # (3 d,)


def sample(engine: Diffusion, span: Span, slots: int) -> Sample:
    """One pass over ``slots`` masks."""
    canvas = canvas_of(engine, span)
    hidden = finish(masked_states(canvas, engine.network, slots, engine.tokens.mask))
    return Sample(span, tokens_of(engine, span), features(hidden).double().cpu().numpy())


def split(samples: Sequence[Sample], seed: int) -> tuple[list[Sample], list[Sample]]:
    """Samples to fit on, and those of the files that are held out.

    Raises ``SystemExit`` for too few files.
    """
    files = sorted({s.span.group for s in samples})
    if len(files) < FEWEST_FILES:
        raise SystemExit(
            f"the spans are from {len(files)} files: give spans of {FEWEST_FILES} or more (in JSONL, the"
            " field `path` or `group` names the file)"
        )
    random.Random(seed).shuffle(files)
    held = set(files[: max(1, round(HELD_OUT * len(files)))])
    return [s for s in samples if s.span.group not in held], [s for s in samples if s.span.group in held]


def fit(samples: Sequence[Sample]) -> tuple[Matrix, float]:
    """Fit weights (3 d,) and the bias of log(tokens), from at least two files."""
    x = np.stack([s.features for s in samples])  # (N, 3 d)
    y = np.log([s.tokens for s in samples])
    files = [s.span.group for s in samples]
    mean = x.mean(0)
    scale = x.std(0) + 1e-6
    folds = list(GroupKFold(min(FOLDS, len(set(files)))).split(x, y, files))
    ridge: Any = RidgeCV(STRENGTHS, cv=folds, scoring="neg_mean_absolute_error")
    ridge.fit((x - mean) / scale, y)
    weight: Matrix = ridge.coef_ / scale
    return weight, float(ridge.intercept_ - weight @ mean)


def probe_of(engine: Diffusion, samples: Sequence[Sample], slots: int) -> LengthProbe:
    """The probe that was fitted to samples of an engine's model."""
    weight, bias = fit(samples)
    target = weights_hash(model_folder(engine.card, Settings().models_dir))
    return LengthProbe(target, slots, torch.from_numpy(weight).float(), bias)


def rows(
    engine: Diffusion, probe: LengthProbe, fitted: Sequence[Sample], held: Sequence[Sample]
) -> Iterator[str]:
    """Yield a table row per method with its errors on the held-out middles, in tokens."""
    limit = engine.canvas_card.max_tokens

    def row(name: str, lengths: Iterable[int], passes: float) -> str:
        errors = [abs(length - s.tokens) for length, s in zip(lengths, held, strict=True)]
        return f"| {name} | {fmean(errors):.2f} | {within(errors):.0f} % | {passes:.1f} |"

    constant = round(median(s.tokens for s in fitted))
    yield row(f"always {constant}", [constant] * len(held), 0)
    refit = length_bias.fit([length_bias.confidences(engine, s.span) for s in track(fitted, "CAL's bias")])
    for name, curve in (("CAL, published bias", bias), ("CAL, fitted bias", bias_of(refit))):
        found = [length_bias.search(engine, s.span, curve) for s in track(held, name)]
        yield row(name, [f.tokens for f in found], fmean(f.passes for f in found))
    yield row("probe", [probe.length(torch.from_numpy(s.features).float(), limit) for s in held], 1)


def main() -> None:
    """Measure, fit, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("card", help="name or path of a card with a canvas")
    parser.add_argument("spans", type=Path)
    parser.add_argument("--limit", type=int, default=400, help="spans")
    parser.add_argument("--slots", type=int, default=16, help="masks on the canvas that the probe reads")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--out", type=Path, help="default: NAME-length.safetensors in the model's adapters")
    args = parser.parse_args()
    engine = open_engine(args.card, args.device)
    spans = read_middles(engine, args.spans, args.limit, args.seed)
    fitted, held = split([sample(engine, span, args.slots) for span in track(spans, "spans")], args.seed)
    probe = probe_of(engine, fitted, args.slots)
    name = f"{engine.card.name}-length.safetensors"
    out = args.out or model_folder(engine.card, Settings().models_dir) / "adapters" / name
    save_probe(probe, out)
    print(f"fitted on {len(fitted)} spans, tried on {len(held)} of other files", end="\n\n")
    print("| length | mean error, tokens | within 5 | passes |", "|---|---|---|---|", sep="\n")
    for row in rows(engine, probe, fitted, held):
        print(row, flush=True)
    print(f'\nwritten to {out}; for the card: length = "search", length_probe = "{out.name}"')


if __name__ == "__main__":
    main()
