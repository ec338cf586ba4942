"""Middles written by the target, made and kept to train and measure drafters on.

Usage: ``python -m models.training.windows --split train --minutes 20``. Every context gets a greedy middle
and a sampled one. A later run goes on where the file ends; the file of another target is refused.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fimserver.engine.forward.fused import native_stack, packs
from fimserver.engine.forward.layers import bias_of
from models.training.corpus import CACHE
from models.training.holes import cut
from models.training.rows import Layout, RowMaker, RowStream
from models.training.target import NANO, Target
from models.training.train import read_texts

LAYOUT = Layout(context=440, middle=64)
TEMPERATURES = (0.0, 0.8)  # those of suggestions and of sampling
CONTEXTS = 128  # of a shard, sorted by length
TOGETHER = 32  # contexts that are decoded side by side, each at every temperature


class Window(NamedTuple):
    """What the target wrote. A middle ends with a special token, or is cut at ``LAYOUT.middle``."""

    context: list[int]
    middle: list[int]
    greedy: bool


@dataclass(frozen=True)
class Windows:
    """Windows as tensors: all ids, and for each row its end, its context length and whether it is greedy."""

    ids: torch.Tensor
    ends: torch.Tensor
    contexts: torch.Tensor
    greedy: torch.Tensor
    shards: int = 0  # how many made it, so that the next run goes on with other contexts

    @classmethod
    def of(cls, rows: Sequence[Window], shards: int = 0) -> Windows:
        lengths = [len(row.context) + len(row.middle) for row in rows]
        return cls(
            torch.tensor([t for row in rows for t in row.context + row.middle], dtype=torch.int32),
            torch.tensor(lengths, dtype=torch.int64).cumsum(0),
            torch.tensor([len(row.context) for row in rows], dtype=torch.int64),
            torch.tensor([row.greedy for row in rows], dtype=torch.bool),
            shards,
        )

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> Window:
        start, end = int(self.ends[index - 1]) if index else 0, int(self.ends[index])
        ids, split = self.ids[start:end].tolist(), int(self.contexts[index])
        return Window(ids[:split], ids[split:], bool(self.greedy[index]))

    def middles(self) -> torch.Tensor:
        """Tokens in every middle (N,)."""
        return self.ends.diff(prepend=self.ends.new_zeros(1)) - self.contexts

    def only(self, *, greedy: bool) -> Windows:
        """The greedy ones, or the sampled ones."""
        return Windows.of([self[int(i)] for i in (self.greedy == greedy).nonzero()[:, 0]])

    def and_shard(self, rows: Sequence[Window]) -> Windows:
        """These and those of one more shard."""
        more, before = Windows.of(rows), self.ends[-1:].sum()
        return Windows(
            torch.cat([self.ids, more.ids]),
            torch.cat([self.ends, more.ends + before]),
            torch.cat([self.contexts, more.contexts]),
            torch.cat([self.greedy, more.greedy]),
            self.shards + 1,
        )

    def save(self, path: Path, target: str) -> None:
        """Write with the SHA-256 of the ``target``'s weights.

        Atomic, so that a kill leaves the former file.
        """
        tensors = {"ids": self.ids, "ends": self.ends, "contexts": self.contexts, "greedy": self.greedy}
        part = path.with_suffix(".part")
        save_file(tensors, part, {"target": target, "shards": str(self.shards)})
        part.replace(path)


def windows_path(folder: Path, split: str) -> Path:
    return folder / f"windows-{split}.safetensors"


def read_windows(path: Path, target: str) -> Windows:
    """Read what ``save`` wrote.

    Raises ``SystemExit`` if the file is missing or another target wrote it.
    """
    if not path.exists():
        raise SystemExit(f"{path} is not there: run `python -m models.training.windows` first")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    if metadata["target"] != target:
        raise SystemExit(
            f"{path} was written by other weights ({metadata['target'][:12]}…) than the target's"
            f" ({target[:12]}…): delete it, or name the target that wrote it with --target"
        )
    return Windows(**tensors, shards=int(metadata["shards"]))


class RaggedKV:
    """Keys and values of rows of different lengths, with padding at the end of each row."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.at = torch.empty(0, dtype=torch.int64)  # (B,) where the next token of each row goes
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, index: int, /
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The first call of a layer takes the contexts (B, heads, M, D), from place 0 on.

        Later ones a token for each row.
        """
        if index not in self._layers:
            self._layers[index] = (self._buffer(keys), self._buffer(values))
            return keys, values
        rows, extent = torch.arange(len(self.at), device=self.at.device), int(self.at.max()) + 1
        for buffer, new in zip(self._layers[index], (keys, values), strict=True):
            buffer[rows, :, self.at] = new[:, :, 0]
        return self._layers[index][0][:, :, :extent], self._layers[index][1][:, :, :extent]

    def take(self, rows: torch.Tensor) -> None:
        """Keep these rows, in this order; a row may be taken twice."""
        self.at = self.at[rows]
        self._layers = {i: (keys[rows], values[rows]) for i, (keys, values) in self._layers.items()}

    def _buffer(self, rows: torch.Tensor) -> torch.Tensor:
        buffer = rows.new_zeros(*rows.shape[:2], self.capacity, rows.shape[3])
        buffer[:, :, : rows.shape[2]] = rows
        return buffer


class Writer:
    """The target, writing many middles at a time in full precision."""

    def __init__(self, target: Target, limit: int = LAYOUT.middle) -> None:
        body, device = target.model.model, target.device
        self.target, self.limit = target, limit
        rows, pack = TOGETHER * len(TEMPERATURES), packs(target.model, device)
        self.stack = native_stack(target.model.config, body.layers, rows, pack=pack)
        self.final_norm = body.norm.weight
        self.stops = torch.tensor(sorted(target.markers), device=device)

    @torch.inference_mode()
    def write(
        self, contexts: Sequence[list[int]], temperatures: Sequence[float], generator: torch.Generator
    ) -> list[list[int]]:
        """Middles of all contexts at the first temperature, then at the second, and so on."""
        kv = RaggedKV(max(map(len, contexts)) + self.limit)
        logits = self._read(contexts, kv)
        rows = torch.arange(len(contexts), device=logits.device).repeat(len(temperatures))
        kv.take(rows)
        temperature = torch.tensor(temperatures, device=logits.device).repeat_interleave(len(contexts))
        return self._decode(logits[rows], temperature, kv, generator)

    def _decode(
        self, logits: torch.Tensor, temperature: torch.Tensor, kv: RaggedKV, generator: torch.Generator
    ) -> list[list[int]]:
        middles: list[list[int]] = [[] for _ in logits]
        owner = torch.arange(len(logits), device=logits.device)  # whose middle each row of the batch is
        going = torch.ones_like(owner, dtype=torch.bool)
        for left in range(self.limit - 1, -1, -1):
            tokens = _draw(logits, temperature[owner], generator)
            for i, token in zip(owner[going].tolist(), tokens[going].tolist(), strict=True):
                middles[i].append(token)
            going = going & ~torch.isin(tokens, self.stops)
            if not left or not going.any():
                break
            if going.sum() <= 0.75 * len(going):  # a copy of the rest costs about as much as a step
                kv.take(going.nonzero()[:, 0])
                owner, tokens, going = owner[going], tokens[going], going[going]
            logits = self._next(tokens, kv)
        return middles

    def _read(self, contexts: Sequence[list[int]], kv: RaggedKV) -> torch.Tensor:
        """Logits (B, V) after each context."""
        device = self.target.device
        kv.at = torch.tensor([len(c) for c in contexts], device=device)
        count, width = len(contexts), int(kv.at.max())
        ids = torch.tensor([c + [0] * (width - len(c)) for c in contexts], device=device)
        causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        x = self._run(ids, torch.arange(width, device=device).expand(count, -1), causal, kv)
        return self._head(x.view(count, width, -1)[torch.arange(count, device=device), kv.at - 1])

    def _next(self, tokens: torch.Tensor, kv: RaggedKV) -> torch.Tensor:
        """Logits (B, V) after one more token (B,) of each row."""
        extent = torch.arange(int(kv.at.max()) + 1, device=tokens.device)
        x = self._run(tokens[:, None], kv.at[:, None], (extent <= kv.at[:, None])[:, None, None], kv)
        kv.at = kv.at + 1
        return self._head(x)

    def _run(
        self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, kv: RaggedKV
    ) -> torch.Tensor:
        x = self.target.embedding[ids.flatten()]
        return self.stack.run(x, self.target.rope(positions), bias_of(mask, x.dtype), kv)

    def _head(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.target.model.lm_head(self.stack.norm(x, self.final_norm))
        return logits


def _draw(logits: torch.Tensor, temperature: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A token for each row of (B, V), at its own temperature (B,)."""
    tokens = logits.argmax(-1)
    warm = temperature > 0
    if warm.any():
        probabilities = (logits[warm].float() / temperature[warm, None]).softmax(-1)
        tokens[warm] = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    return tokens


def make_shard(writer: Writer, stream: RowStream, shard: int) -> list[Window]:
    """The windows of one shard; they depend on the stream's seed and the number alone."""
    rng = random.Random(f"windows/{stream.seed}/{shard}")
    texts = rng.choices(stream.texts, cum_weights=stream.cumulative, k=CONTEXTS)
    contexts = sorted((stream.maker.tokens(cut(text, rng), rng)[0] for text in texts), key=len)
    generator = torch.Generator(writer.target.device).manual_seed(rng.getrandbits(62))
    rows: list[Window] = []
    for first in range(0, CONTEXTS, TOGETHER):
        some = contexts[first : first + TOGETHER]
        middles = iter(writer.write(some, TEMPERATURES, generator))
        rows += [Window(context, next(middles), t == 0) for t in TEMPERATURES for context in some]
    return rows


def extend(path: Path, writer: Writer, stream: RowStream, minutes: float, count: int) -> Windows:
    """Append shards to the file until it holds ``count`` windows or the time is over."""
    target = writer.target.sha256
    windows = read_windows(path, target) if path.exists() else Windows.of([])
    started, before = time.monotonic(), int(windows.middles().sum())
    while len(windows) < count and time.monotonic() - started < 60 * minutes:
        windows = windows.and_shard(make_shard(writer, stream, windows.shards))
        windows.save(path, target)
        tokens = int(windows.middles().sum())
        rate = (tokens - before) / (time.monotonic() - started)
        print(
            f"{path.name}: {len(windows)} windows, {tokens} tokens of middles, {rate:.0f} tokens/s",
            flush=True,
        )
    return windows


def main() -> None:
    """Parse options and write windows."""
    parser: Any = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--split", choices=("train", "valid"), default="train")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument(
        "--count", type=int, default=100_000, help="windows in the file, those of former runs among them"
    )
    parser.add_argument("--target", type=Path, default=NANO)
    parser.add_argument("--corpus", type=Path, default=CACHE)
    parser.add_argument("--out", type=Path, help="default: windows-SPLIT.safetensors beside the corpus")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    target = Target(args.target, args.device)
    path = args.out or windows_path(args.corpus, args.split)
    if path.exists():
        read_windows(path, target.sha256)  # refuse before the corpus is read
    stream = RowStream(read_texts(args.corpus, args.split), RowMaker(target.tokenizer, LAYOUT), args.seed)
    extend(path, Writer(target), stream, args.minutes, args.count)


if __name__ == "__main__":
    main()
