"""Frozen target that drafters are trained for: its outputs, and what drafters are initialised from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch.nn import functional as F
from transformers import DynamicCache

from fimserver.cards import get_card
from fimserver.engine.drafters.nets import BlockNetwork, BlockShape, Heads, HeadsShape
from fimserver.engine.load import load
from fimserver.engine.prompts.vocabulary import read_tokenizer
from fimserver.hashing import sha256

NANO = Path(__file__).parent.parent / "nano"
Rope = tuple[torch.Tensor, torch.Tensor]


class Seen(NamedTuple):
    """Outputs of the target.

    Inputs of its head (B, T, d); by layer (keys, values), each (B, heads, T, D); ``own`` (B, T): the token
    that the target would write after each place, ``None`` if it is not known.
    """

    hidden: torch.Tensor
    layers: Mapping[int, tuple[torch.Tensor, torch.Tensor]]
    own: torch.Tensor | None = None


class Frozen(Protocol):
    """A frozen model that drafters are trained for: ``Target``, or a coder (``coder_target.py``)."""

    device: torch.device
    sha256: str

    def see(self, ids: torch.Tensor, /) -> Seen:
        """One causal pass over ids (B, T), padded on the right."""
        ...

    def embed(self, ids: torch.Tensor, /) -> torch.Tensor:
        """Embeddings (…, d) of ids (…)."""
        ...

    def head(self, hidden: torch.Tensor, words: torch.Tensor | None = None, /) -> torch.Tensor:
        """Logits (…, V) of all tokens, or of some ``words``."""
        ...

    def rope(self, positions: torch.Tensor, /) -> Rope:
        """Cosines and sines (B * M, 1, D) of positions (B, M)."""
        ...


class Target:
    """A model of nano's kind, frozen."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        card = get_card("nano").model_copy(update={"files": {}})
        loaded = load(card, folder, torch.device(device))
        self.model: Any = loaded.model
        self.device, self.markers = loaded.device, loaded.vocabulary.marker_ids
        self.tokenizer = read_tokenizer(folder, card)
        self.mask = loaded.vocabulary.special("<|mask|>")
        self.sha256 = sha256(folder / "model.safetensors")
        self.embedding: torch.Tensor = self.model.model.embed_tokens.weight

    @torch.no_grad()
    def see(self, ids: torch.Tensor) -> Seen:
        """One causal pass over ids (B, T), padded on the right."""
        cache: Any = DynamicCache(config=self.model.config)
        hidden = self.model.model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
        return Seen(hidden, {i: (layer.keys, layer.values) for i, layer in enumerate(cache.layers)})

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.embedding[ids]

    def head(self, hidden: torch.Tensor, words: torch.Tensor | None = None) -> torch.Tensor:
        weight = self.model.lm_head.weight
        return F.linear(hidden, weight if words is None else weight[words])

    def rope(self, positions: torch.Tensor) -> Rope:
        """Cosines and sines (B * M, 1, D) of positions (B, M)."""
        cos, sin = self.model.model.rotary_emb(self.embedding[:1], positions.reshape(1, -1))
        return cos[0, :, None], sin[0, :, None]

    def new_heads(self, count: int) -> Heads:
        """Return untrained heads, each of which predicts the target's own next token."""
        return Heads(HeadsShape(self.embedding.shape[1], count)).to(self.device)

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
