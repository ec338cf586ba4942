"""A frozen coder that drafters are trained for, in int8, as it is served."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from fimserver.cards import Card
from fimserver.engine.drafters.cut_head import head_rows
from fimserver.engine.drafters.nets import Heads, HeadsShape
from fimserver.engine.forward.fused import FusedModel
from fimserver.engine.forward.kv import KVBuffer
from fimserver.engine.load import load, weights_hash
from models.training.canvas_data import example_of
from models.training.canvas_prompts import Prompts
from models.training.holes import Hole
from models.training.target import Rope, Seen

CARD = "qwen2.5-coder-0.5b-instruct"
BEFORE = (256, 384)  # tokens of the prefix of a prompt
AFTER = (8, 96)
LONGEST = 640
CHUNK = 64


class CoderTarget:
    """A frozen coder; also makes the prompts of its card from holes."""

    def __init__(self, folder: Path, card: Card, kept: Path) -> None:
        """``kept``: folder for the results of ``see``, if they are stored."""
        self.kept = kept
        self.device = torch.device("cpu")
        loaded = load(card, folder, self.device, "int8")
        assert loaded.weights is not None  # int8 was asked for
        self.network = FusedModel(loaded.weights, LONGEST)
        self.embed, self.width = self.network.embed, len(self.network.final_norm)
        self.prompts, self.markers = Prompts(card, loaded.vocabulary), loaded.vocabulary.marker_ids
        self.sha256 = weights_hash(folder)
        self._rows = (torch.empty(0), torch.empty(0))  # the words that were last asked for, with their matrix

    def tokens(self, hole: Hole, rng: random.Random) -> tuple[list[int], list[int]]:
        """Context ids of a hole, and middle ids with the end token if the middle is whole."""
        example = example_of(hole, self.prompts, rng.randint(*BEFORE), rng.randint(*AFTER))
        return list(example.ids[: example.prompt]), list(example.middle)

    def see(self, ids: torch.Tensor) -> Seen:
        """One causal pass over ids (B, T), padded on the right; once: it is kept, hidden states in bf16."""
        name = hashlib.sha256(repr((self.sha256, ids.tolist())).encode()).hexdigest()[:32]
        path = self.kept / f"{name}.safetensors"
        if not path.exists():
            hidden, own = zip(*map(self._read, ids), strict=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            save_file({"hidden": torch.stack(hidden), "own": torch.stack(own)}, part)
            part.replace(path)
        tensors = load_file(path)
        return Seen(tensors["hidden"].float(), {}, tensors["own"])

    @torch.inference_mode()
    def _read(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states (T, d) of one text, and what the coder would write after each token."""
        kv, parts = KVBuffer(len(ids)), []
        for start in range(0, len(ids), CHUNK):
            some = ids[start : start + CHUNK]
            kv.place(start, start + len(some))
            mask = torch.ones(len(some), kv.extent, dtype=torch.bool).tril(start)
            logits = self.network.forward(some[None], mask, kv, torch.arange(len(some)))
            parts.append((self.network.hidden[0].bfloat16(), logits[0].argmax(-1)))
        hidden, own = zip(*parts, strict=True)
        return torch.cat(hidden), torch.cat(own)

    def head(self, hidden: torch.Tensor, words: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (…, V) of some ``words``, with gradients."""
        assert words is not None  # the drafters of a coder have some
        if not torch.equal(self._rows[0], words):
            self._rows = words, head_rows(self.network, words, self.width)
        return F.linear(hidden, self._rows[1])

    def rope(self, positions: torch.Tensor) -> Rope:
        """Cosines and sines (B * M, 1, D) of positions (B, M)."""
        return self.network.rope(0, 0, positions=positions.flatten())

    def new_heads(self, count: int, width: int, words: torch.Tensor) -> Heads:
        """Return untrained heads, each of which predicts the coder's own next token."""
        net = Heads(HeadsShape(self.width, count, width, len(words), normed=True))
        net.words = words.int()
        return net
