"""Training of the length model: middles cut from the corpus, features of their cursors, two logistic fits.

Usage: ``python -m models.training.lengths`` from the repository root, after
``python -m models.training.corpus``; a few minutes on one core. Learned from are the corpus's files for
training, measured are its files for validation: packages of which nothing was learned.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.progress import track
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
from sklearn.metrics import confusion_matrix, log_loss  # type: ignore[import-untyped]

from fimserver.ab.items.cuts import KINDS, holes
from fimserver.front.syntax.features import features
from fimserver.host.routing.length_model import LOOKS, NAMES, SCHEMA, LengthModel, Look, columns, look
from fimserver.lengths import BUCKETS, LABELS, bucket_of, lexemes
from fimserver.types import Features
from models.training.corpus import CACHE, SEPARATOR
from models.training.holes import in_line

OUT = Path(__file__).parent.parent / "length.json"
LANGUAGE = "python"
FILE_CHARS = 100_000  # longer ones are left out
AT_HEADER = 0.25  # of bodies
PSEUDO = 1.0  # middles that each bucket of a marginal is given
DIGITS = 6

Matrix = NDArray[np.float64]


class Sample(NamedTuple):
    """One middle: what is known before it is written, and how long it was."""

    kind: str
    features: Features
    look: Look
    lexemes: int
    chars: int
    multi_line: bool

    @property
    def bucket(self) -> int:
        return bucket_of(self.lexemes)


def samples(texts: Iterable[str], seed: int, per_kind: int = 1) -> Iterator[Sample]:
    """Up to ``per_kind`` middles of each kind of each file.

    Those of ``fimserver ab``, and as many inside of lines.
    """
    for number, text in enumerate(texts):
        rng = random.Random(f"{seed}:{number}")
        cuts = holes(LANGUAGE, text, rng)
        chosen = [(kind, _begun(kind, text, hole, rng)) for kind in KINDS for hole in cuts[kind][:per_kind]]
        chosen += [("in_line", hole) for hole in _inside(text, rng, per_kind)]
        yield from (_sample(kind, text, *hole) for kind, hole in chosen)


def _begun(kind: str, text: str, hole: tuple[int, int], rng: random.Random) -> tuple[int, int]:
    """A hole, for some bodies from the end of the header, where the cursor is before Enter is pressed."""
    start, end = hole
    return (len(text[:start].rstrip()), end) if kind == "body" and rng.random() < AT_HEADER else hole


def _inside(text: str, rng: random.Random, count: int) -> list[tuple[int, int]]:
    """Cut holes inside lines, so that there is text right of the cursor, also in strings and comments."""
    drawn = (in_line(text, rng) for _ in range(4 * count))
    return [hole for hole in drawn if text[slice(*hole)].strip()][:count]


def _sample(kind: str, text: str, start: int, end: int) -> Sample:
    prefix, middle, suffix = text[:start], text[start:end], text[end:]
    seen = features(LANGUAGE, prefix, suffix)
    return Sample(kind, seen, look(prefix, suffix), lexemes(middle), len(middle), "\n" in middle)


def fit(training: Sequence[Sample], seed: int) -> dict[str, Any]:
    """The numbers that the host reads, by the names of ``lengthmodel.Model``.

    Raises ``ValueError`` for too few samples.
    """
    if missing := set(BUCKETS) - {sample.bucket for sample in training}:
        raise ValueError(f"no middle of {LABELS[min(missing)]} lexemes: give more files")
    x = np.array([columns(sample.features) for sample in training])  # (N, C)
    buckets = np.array([sample.bucket for sample in training])
    lines = np.array([sample.multi_line for sample in training])
    by_bucket = LogisticRegression(max_iter=2000, random_state=seed).fit(x, buckets)
    by_lines = LogisticRegression(max_iter=2000, random_state=seed).fit(x, lines)
    counts = [[sample for sample in training if sample.bucket == bucket] for bucket in BUCKETS]
    total = sum(sample.lexemes for sample in training)
    return {
        "schema": SCHEMA,
        "features": list(NAMES),
        "weights": by_bucket.coef_.tolist(),
        "bias": by_bucket.intercept_.tolist(),
        "chars_per_lexeme": _rounded(sum(sample.chars for sample in training) / total),
        "chars": _rounded([np.mean([sample.chars for sample in some]) for some in counts]),
        "lexemes": _rounded([np.mean([sample.lexemes for sample in some]) for some in counts]),
        "marginals": {name: marginal([s.bucket for s in training if s.look == name]) for name in LOOKS},
        "multi_line": {
            "weights": by_lines.coef_[0].tolist(),
            "bias": float(by_lines.intercept_[0]),
            "marginals": {name: _share([s.multi_line for s in training if s.look == name]) for name in LOOKS},
        },
    }


def marginal(buckets: Sequence[int]) -> list[float]:
    """Return the frequency of each bucket."""
    counts = Counter(buckets)
    total = len(buckets) + PSEUDO * len(BUCKETS)
    return [(counts[bucket] + PSEUDO) / total for bucket in BUCKETS]


def _share(flags: Sequence[bool]) -> float:
    return (sum(flags) + PSEUDO) / (len(flags) + 2 * PSEUDO)


def _rounded(values: Any) -> Any:
    return np.round(values, DIGITS).tolist()


def measure(
    data: Mapping[str, Any], training: Sequence[Sample], held_out: Sequence[Sample]
) -> dict[str, Any]:
    """Measure the fitted model, as the host reads it, on held-out files.

    Log losses are in nats. Rows of the confusion are the true buckets, columns those of the medians.
    ``look``: the shares for what plain text shows; ``marginal``: the same shares for all.
    """
    served = LengthModel.model_validate(data)
    guesses = [served.length(sample.features, "", "") for sample in held_out]
    model = np.array([guess.probabilities for guess in guesses])  # (N, buckets)
    truth = [sample.bucket for sample in held_out]
    always = np.array([marginal([sample.bucket for sample in training])] * len(truth))
    looked = np.array([data["marginals"][sample.look] for sample in held_out])
    lines = [guess.multi_line for guess in guesses]
    looked_lines = [data["multi_line"]["marginals"][sample.look] for sample in held_out]
    multi = [sample.multi_line for sample in held_out]
    share = [float(np.mean([sample.multi_line for sample in training]))] * len(multi)

    def losses(truth: Sequence[int], labels: Sequence[int], **guesses: Any) -> dict[str, float]:
        return {name: _rounded(log_loss(truth, guess, labels=labels)) for name, guess in guesses.items()}

    return {
        "confusion": confusion_matrix(truth, [guess.bucket for guess in guesses], labels=BUCKETS).tolist(),
        "log_loss": losses(truth, BUCKETS, model=model, look=looked, marginal=always),
        "accuracy": _hits(truth, model=model, look=looked, marginal=always),
        "multi_line_log_loss": losses(multi, (0, 1), model=lines, look=looked_lines, marginal=share),
    }


def _hits(truth: Sequence[int], **guesses: Matrix) -> dict[str, float]:
    return {name: _rounded(np.mean(guess.argmax(1) == truth)) for name, guess in guesses.items()}


def read_files(corpus: Path, split: str) -> list[str]:
    """The files of one split that are not too long."""
    texts = (corpus / f"{split}.txt").read_text("utf-8").split(SEPARATOR)
    return [text for text in texts if len(text) <= FILE_CHARS]


def told(corpus: Path, parts: Mapping[str, tuple[int, Sequence[Sample]]]) -> dict[str, Any]:
    """Describe the data of the fit. ``parts``: files and samples of each split."""
    sources = json.loads((corpus / "sources.json").read_text("utf-8"))
    digests = {split: hashlib.sha256((corpus / f"{split}.txt").read_bytes()).hexdigest() for split in parts}
    return {
        split: {
            "packages": {source["name"]: source["version"] for source in sources if source["split"] == split},
            "corpus_sha256": digests[split],
            "files": files,
            "middles": dict(Counter(sample.kind for sample in some)),
        }
        for split, (files, some) in parts.items()
    } | {"language": LANGUAGE, "date": datetime.now(UTC).date().isoformat()}


def main() -> None:
    """Cut, fit, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, default=CACHE)
    parser.add_argument(
        "--files", type=int, default=8000, help="so many files for training, five middles of each"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    texts = read_files(args.corpus, "train")
    texts = random.Random(args.seed).sample(texts, min(args.files, len(texts)))
    held = read_files(args.corpus, "valid")
    training = list(samples(track(texts, "training files"), args.seed))
    held_out = list(samples(track(held, "held-out files"), args.seed, 4))
    data = fit(training, args.seed)
    data |= measure(data, training, held_out)
    data["trained_on"] = told(args.corpus, {"train": (len(texts), training), "valid": (len(held), held_out)})
    args.out.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    for name in ("confusion", "log_loss", "accuracy", "multi_line_log_loss"):
        print(name, data[name])


if __name__ == "__main__":
    main()
