"""Tokenizer of the nano model: a byte-level BPE whose newline token carries its indentation.

Usage: ``python -m models.training.tokenizer``.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from models.training.corpus import CACHE, SEPARATOR

EOT, MASK, PAD = "<|eot|>", "<|mask|>", "<|pad|>"
SUFFIX, PREFIX, MIDDLE, FILE = "<|suffix|>", "<|prefix|>", "<|middle|>", "<|file|>"
SPECIALS = (EOT, MASK, PAD, SUFFIX, PREFIX, MIDDLE, FILE)
# newline + indentation | word with one leading mark | one or two digits | marks | blanks
SPLIT = r"\r?\n[ \t]*|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|[ \t]+(?=\S)|\s"


def train(texts: list[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE of ``vocabulary`` tokens, the specials first (ids 0…)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=24,
        show_progress=True,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def main() -> None:
    """Train on a seeded sample of the training split and write ``tokenizer.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, default=CACHE)
    parser.add_argument("--out", type=Path, default=Path("models/nano/tokenizer.json"))
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--sample-mb", type=int, default=60)
    args = parser.parse_args()
    texts = (args.corpus / "train.txt").read_text("utf-8").split(SEPARATOR)
    random.Random(0).shuffle(texts)
    total, sample = 0, []
    for text in texts:
        sample.append(text)
        total += len(text)
        if total > args.sample_mb * 1_000_000:
            break
    tokenizer = train(sample, args.vocabulary)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(args.out))
    valid = (args.corpus / "valid.txt").read_text("utf-8")[:500_000]
    print(f"{len(valid.encode()) / len(tokenizer.encode(valid).ids):.2f} bytes a token on validation text")


if __name__ == "__main__":
    main()
