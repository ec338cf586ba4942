"""A coder and tokenised texts in few megabytes, for training on a machine without a network.

Usage: ``python -m models.training.packed --base coder.gguf --out FOLDER``. The vocabulary is cut to the most
frequent tokens of the texts, with new ids in the same order; other tokens are spelled in several. The layers
keep the blocks of the GGUF file, to the bit.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fimserver.cards import get_card
from fimserver.hashing import sha256
from models.training.canvas import CORPUS, VALIDATION, read_documents
from models.training.canvas_data import Example, Examples
from models.training.canvas_prompts import Prompts, gguf_prompts
from models.training.corpus import CACHE, SEPARATOR

BASE, TEXTS, VALID = "cut.gguf", "texts.safetensors", "valid.safetensors"
CUT = ("token_embd.weight", "output.weight")  # rows of these are tokens
BEFORE, AFTER = (96, 640), (8, 200)  # tokens of a prefix and of a suffix


@dataclass(frozen=True)
class Texts:
    """Tokenised examples: ``ids`` (all of them joined) are places in ``kept``, ascending ids of the coder.

    Text n is ``ids[starts[n] : starts[n + 1]]``, its first ``prompt[n]`` tokens are the prompt, and its
    prefix begins at ``prefix_at[n]``. ``base``: SHA-256 of the coder's own file.
    """

    ids: torch.Tensor
    starts: torch.Tensor
    prompt: torch.Tensor
    prefix_at: torch.Tensor
    kept: torch.Tensor
    base: str

    @classmethod
    def of(cls, examples: Sequence[Example], kept: torch.Tensor, base: str) -> Texts:
        """Pack examples whose tokens are all kept."""
        lengths = torch.tensor([0, *(len(example.ids) for example in examples)])
        joined = torch.tensor([token for example in examples for token in example.ids])
        return cls(
            torch.searchsorted(kept, joined),
            lengths.cumsum(0),
            torch.tensor([example.prompt for example in examples]),
            torch.tensor([example.prefix_at for example in examples]),
            kept,
            base,
        )

    def __len__(self) -> int:
        return len(self.prompt)

    def __getitem__(self, number: int) -> Example:
        start, end = self.starts[number : number + 2].tolist()
        return Example(
            tuple(self.ids[start:end].tolist()), int(self.prompt[number]), int(self.prefix_at[number])
        )

    def save(self, path: Path) -> None:
        tensors = {
            "ids": self.ids.to(torch.uint16),
            "starts": self.starts,
            "prompt": self.prompt.int(),
            "prefix_at": self.prefix_at.int(),
            "kept": self.kept.int(),
        }
        save_file(tensors, path, {"base": self.base})

    @classmethod
    def load(cls, path: Path) -> Texts:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name).long() for name in file.keys()}  # noqa: SIM118
            return cls(**tensors, base=file.metadata()["base"])


def kept_tokens(examples: Sequence[Example], always: Sequence[int], count: int) -> torch.Tensor:
    """The ``count`` most frequent tokens, those of ``always`` among them, ascending."""
    counts = Counter(token for example in examples for token in example.ids)
    by_frequency = [token for token, _ in counts.most_common() if token not in set(always)]
    return torch.tensor(sorted([*always, *by_frequency[: count - len(always)]]))


class Spelling:
    """Writes rare tokens as several kept ones, the longest first."""

    def __init__(self, vocabulary: Mapping[str, int], kept: frozenset[int]) -> None:
        """``vocabulary``: ids by text; its letters (the bytes) are all kept."""
        self.texts = {token: text for text, token in vocabulary.items()}
        self.kept = {text: token for text, token in vocabulary.items() if token in kept}
        self.known = frozenset(self.kept.values())
        self.longest = max(map(len, self.kept))

    def __call__(self, tokens: Sequence[int]) -> list[int]:
        """The same text in kept tokens alone."""
        return [kept for t in tokens for kept in ([t] if t in self.known else self._spelled(t))]

    def example(self, example: Example) -> Example:
        """The same example in kept tokens alone."""
        first, prefix = example.ids[: example.prefix_at], example.ids[example.prefix_at : example.prompt]
        parts = [self(part) for part in (first, prefix, example.middle)]
        return Example(tuple(chain(*parts)), len(parts[0]) + len(parts[1]), len(parts[0]))

    def _spelled(self, token: int) -> list[int]:
        rest, spelled = self.texts[token], list[int]()
        while rest:
            size = next(n for n in range(min(self.longest, len(rest)), 0, -1) if rest[:n] in self.kept)
            spelled.append(self.kept[rest[:size]])
            rest = rest[size:]
        return spelled


def cut_vocabulary(base: Path, kept: torch.Tensor, out: Path) -> None:
    """Write ``base`` with the rows of the kept tokens alone, without its tokenizer."""
    reader = gguf.GGUFReader(base)
    fields = {
        name: field for name, field in reader.fields.items() if not name.startswith(("GGUF.", "tokenizer."))
    }
    architecture = str(fields.pop("general.architecture").contents())
    writer = gguf.GGUFWriter(out, architecture)
    for name, field in fields.items():
        writer.add_key_value(name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        rows: Any = tensor.data[kept.numpy()] if tensor.name in CUT else tensor.data
        writer.add_tensor(tensor.name, np.ascontiguousarray(rows), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def always_kept(prompts: Prompts) -> list[int]:
    """Markers, and the tokens of single bytes."""
    letters = [token for text, token in prompts.vocabulary.ids_by_text().items() if len(text) == 1]
    return sorted({*prompts.vocabulary.marker_ids, *letters})


def main() -> None:
    """Cut, tokenise, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="GGUF file of the coder")
    parser.add_argument("--card", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--corpus", type=Path, default=CACHE)
    parser.add_argument("--texts", type=int, default=45_000)
    parser.add_argument("--valid", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=32_768, help="size of the vocabulary")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    prompts = gguf_prompts(get_card(args.card), args.base)
    shares = {name: share for name, (_, share) in CORPUS.items()}
    examples = list(
        map(
            Examples(read_documents(args.corpus), shares, prompts, args.seed, before=BEFORE, after=AFTER),
            range(args.texts),
        )
    )
    held_out = {"python": (args.corpus / VALIDATION).read_text("utf-8").split(SEPARATOR)}
    valid = list(
        map(
            Examples(held_out, {"python": 1.0}, prompts, args.seed, before=BEFORE, after=AFTER),
            range(args.valid),
        )
    )
    kept = kept_tokens(examples, always_kept(prompts), args.tokens)
    spelling = Spelling(prompts.vocabulary.ids_by_text(), frozenset(kept.tolist()))
    cut_vocabulary(args.base, kept, args.out / BASE)
    for name, some in {TEXTS: examples, VALID: valid}.items():
        spelled = [spelling.example(example) for example in some]
        Texts.of(spelled, kept, sha256(args.base)).save(args.out / name)
        print(f"{name}: {len(some)} texts, {sum(len(e.ids) for e in spelled)} tokens")


if __name__ == "__main__":
    main()
