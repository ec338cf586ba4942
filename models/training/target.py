"""Frozen target that drafters are trained for: its outputs, and what drafters are initialised from."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import DynamicCache

from fimserver.cards import get_card
from fimserver.engine.drafters.nets import BlockNetwork, BlockShape, Heads, HeadsShape
from fimserver.engine.load import load
from fimserver.engine.prompts.vocabulary import read_tokenizer
from fimserver.hashing import sha256
from models.training.canvas import read_base
from models.training.canvas_data import example_of
from models.training.canvas_prompts import Prompts, gguf_prompts
from models.training.holes import Hole

NANO = Path(__file__).parent.parent / "nano"
CODER_CARD = "qwen2.5-coder-0.5b-instruct"
BEFORE = (256, 384)  # tokens of the prefix of a coder's prompts
AFTER = (8, 96)
TOGETHER = 256  # rows whose logits are in memory at a time
Rope = tuple[torch.Tensor, torch.Tensor]


class Seen(NamedTuple):
    """What the target computes anyway.

    What its head sees (B, T, d), and (keys, values), each (B, heads, T, D), by layer. ``own`` (B, T), where it
    is known: the token that the target itself would write after each place.
    """

    hidden: torch.Tensor
    layers: Mapping[int, tuple[torch.Tensor, torch.Tensor]]
    own: torch.Tensor | None = None


class CoderTexts:
    """Turns holes into prompts of a coder's card, and their middles."""

    def __init__(self, prompts: Prompts) -> None:
        self.prompts = prompts

    def tokens(self, hole: Hole, rng: random.Random) -> tuple[list[int], list[int]]:
        """Context ids, and middle ids with the end token if the middle is whole."""
        example = example_of(hole, self.prompts, rng.randint(*BEFORE), rng.randint(*AFTER))
        return list(example.ids[: example.prompt]), list(example.middle)


class Target:
    """A frozen model: of nano's kind in a folder, or a coder in a GGUF file."""

    def __init__(self, path: Path, device: str = "cpu", card: str = CODER_CARD) -> None:
        """``card``: of the coder."""
        self.texts: CoderTexts | None = None
        self.kept: Path | None = None  # a folder for what ``see`` has computed, and ``own`` then
        self.borrowed: tuple[int, ...] = ()  # layers whose keys and values are kept
        if path.suffix == ".gguf":
            self.model: Any = read_base(path).requires_grad_(False).to(device)
            self.texts = CoderTexts(gguf_prompts(get_card(card), path))
            self.device, vocabulary = torch.device(device), self.texts.prompts.vocabulary
        else:
            nano = get_card("nano").model_copy(update={"files": {}})
            loaded = load(nano, path, torch.device(device))
            self.model, self.device, vocabulary = loaded.model, loaded.device, loaded.vocabulary
            self.tokenizer = read_tokenizer(path, nano)
            self.mask = vocabulary.special("<|mask|>")
        self.markers = vocabulary.marker_ids
        self.sha256 = sha256(path if self.texts else path / "model.safetensors")
        self.embedding: torch.Tensor = self.model.model.embed_tokens.weight

    @torch.no_grad()
    def see(self, ids: torch.Tensor) -> Seen:
        """One causal pass over ids (B, T), padded on the right; read from the folder if it was ``kept``."""
        if self.kept is None:
            return self._pass(ids)
        digest = hashlib.sha256(repr((ids.tolist(), self.borrowed)).encode()).hexdigest()
        path = self.kept / f"{digest[:32]}.safetensors"
        if not path.exists():
            seen = self._pass(ids)
            rows = seen.hidden.flatten(0, 1).split(TOGETHER)
            own = torch.cat([self.head(some).argmax(-1) for some in rows]).view_as(ids)
            kv = {f"{i}.{n}": t for i in self.borrowed for n, t in enumerate(seen.layers[i])}
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"hidden": seen.hidden, "own": own, **kv}, path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
        tensors = load_file(path, device=str(self.device))
        layers = {i: (tensors[f"{i}.0"], tensors[f"{i}.1"]) for i in self.borrowed}
        return Seen(tensors["hidden"], layers, tensors["own"])

    def _pass(self, ids: torch.Tensor) -> Seen:
        cache: Any = DynamicCache(config=self.model.config)
        hidden = self.model.model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
        return Seen(hidden, {i: (layer.keys, layer.values) for i, layer in enumerate(cache.layers)})

    def head(self, hidden: torch.Tensor, words: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (…, V) of all tokens, or of some ``words``."""
        weight = self.model.lm_head.weight
        return F.linear(hidden, weight if words is None else weight[words])

    def rope(self, positions: torch.Tensor) -> Rope:
        """Cosines and sines (B * M, 1, D) of positions (B, M)."""
        cos, sin = self.model.model.rotary_emb(self.embedding[:1], positions.reshape(1, -1))
        return cos[0, :, None], sin[0, :, None]

    def new_heads(self, count: int, width: int = 0, words: torch.Tensor | None = None) -> Heads:
        """Untrained heads: each says what the target says."""
        shape = HeadsShape(self.embedding.shape[1], count, width, 0 if words is None else len(words))
        net = Heads(shape)
        if words is not None:
            net.load_state_dict({"words": words}, strict=False)
        return net.to(self.device)

    def new_block(self, borrowed: tuple[int, ...], window: int) -> BlockNetwork:
        """An untrained block drafter that starts from the weights of the layers that it borrows from."""
        config, body = self.model.config, self.model.model
        net = BlockNetwork(
            BlockShape(
                borrowed,
                window,
                config.hidden_size,
                config.num_attention_heads,
                config.num_key_value_heads,
                config.head_dim,
                config.intermediate_size,
                config.rms_norm_eps,
            )
        ).to(self.device)
        with torch.no_grad():
            for layer, index in zip(net.layers, borrowed, strict=True):
                layer.load_state_dict(body.layers[index].state_dict())
            net.norm.weight.copy_(body.norm.weight)
            net.blank.copy_(self.embedding[self.mask])
            net.see.weight.zero_()
        return net
