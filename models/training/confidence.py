"""Calibration of confidence: how often the first line of a middle is right, by the model's own confidence.

Usage: ``python -m models.training.confidence --card NAME --route ar [--spans N]`` from the repository root,
after ``python -m models.training.corpus``. Middles are cut from the corpus's files for validation and written
by the model as an editor would ask for them; an isotonic regression of right or wrong on the confidence gives
the curve, which is written into ``models/confidence.json``.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.progress import track
from sklearn.isotonic import IsotonicRegression  # type: ignore[import-untyped]

from fimserver.ab.items.cuts import KINDS, holes
from fimserver.engine.engines import Engine, ModelPool
from fimserver.front.syntax.features import features
from fimserver.host.routing.router import fit as fit_length
from fimserver.settings import read_settings
from fimserver.types import ROUTES, Deadline, Request
from models.training.corpus import CACHE
from models.training.lengths import FILE_CHARS, LANGUAGE, read_files

OUT = Path(__file__).parent.parent / "confidence.json"
PREFIX_CHARS, SUFFIX_CHARS = 12_000, 6_000
BINS = 20  # of equal counts, as a curve through single middles would overfit
DIGITS = 4


class Judged(NamedTuple):
    """A middle that a model wrote: its confidence, and whether the first line is the file's own."""

    confidence: float
    right: bool


def spans(texts: Iterable[str], count: int, seed: int) -> list[tuple[Request, str]]:
    """Requests with the middle that is missing, of all kinds of holes."""
    rng = random.Random(seed)
    found = [
        (_request(text, start, end), text[start:end])
        for text in texts
        if len(text) <= FILE_CHARS
        for cuts in (holes(LANGUAGE, text, rng),)
        for kind in KINDS
        for start, end in cuts[kind][:2]
    ]
    return rng.sample(found, min(count, len(found)))


def _request(text: str, start: int, end: int) -> Request:
    prefix = text[max(0, start - PREFIX_CHARS) : start]
    suffix = text[end : end + SUFFIX_CHARS]
    return fit_length(Request(prefix, suffix, path="file.py", features=features(LANGUAGE, prefix, suffix)))


def judged(engine: Engine, asked: Iterable[tuple[Request, str]]) -> Iterator[Judged]:
    """Yield the middles of a model, without those of which nothing would be shown."""
    for request, truth in asked:
        chunks = list(engine.complete(request, Deadline()))
        middle = "".join(chunk.text for chunk in chunks)
        if middle.strip() and chunks[-1].confidence is not None:
            yield Judged(chunks[-1].confidence, _first_line(middle) == _first_line(truth))


def _first_line(text: str) -> str:
    return text.strip("\n").split("\n")[0].rstrip()


def curve(middles: Sequence[Judged]) -> dict[str, Any]:
    """Fit the curve over bins of equal counts, from at least one middle."""
    ordered = sorted(middles)
    bins = [part for part in np.array_split(np.array(ordered, float), min(BINS, len(ordered))) if len(part)]
    x = [float(part[:, 0].mean()) for part in bins]
    y = [float(part[:, 1].mean()) for part in bins]
    weights = [len(part) for part in bins]
    fitted = IsotonicRegression(y_min=0, y_max=1).fit_transform(x, y, sample_weight=weights)
    points = {round(a, DIGITS): round(float(b), DIGITS) for a, b in zip(x, fitted, strict=True)}
    return {"confidence": list(points), "share": list(points.values()), "spans": len(ordered)}


def main() -> None:
    """Cut, complete, fit, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--card", default="nano")
    parser.add_argument("--route", choices=ROUTES, default="ar")
    parser.add_argument("--spans", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path, default=CACHE)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    engine = ModelPool(read_settings(ar_card=args.card, dllm_card=args.card)).engine(args.route)
    asked = spans(read_files(args.corpus, "valid"), args.spans, args.seed)
    middles = list(judged(engine, track(asked, "middles")))
    data = json.loads(args.out.read_text("utf-8")) if args.out.exists() else {"curves": {}}
    data["curves"].setdefault(args.route, {})[engine.card.name] = made = curve(middles)
    args.out.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    print(f"{len(middles)} middles, {sum(m.right for m in middles)} right; curve", made)


if __name__ == "__main__":
    main()
