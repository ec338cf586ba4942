"""A real coder of few megabytes and its held-out texts, as ``models/training/packed.py`` writes them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig

from bench.gpu.setup import on_device
from bench.gpu.shapes import Shape
from fimserver.engine.weights.gguf import config_fields, read_gguf

BASE, VALID = "cut.gguf", "valid.safetensors"
FIRST_MARKER = 151643  # of the ids of Qwen2.5: this one and those after it are no text
FIM_PAD = 151662  # stands for a masked slot, as in the model's card
READERS = 8
FIRST_CHARACTER = 0xF0000  # of a plane for private use: one character for each token


@dataclass(frozen=True)
class Prompt:
    """Token ids of a prompt, and the code left and right of the middle, without markers."""

    ids: list[int]
    prefix: list[int]
    suffix: list[int]


@dataclass(frozen=True)
class HeldOut:
    """Prompts, the tokens that are no text, the masked slot's, and the hash of the weights before the cut."""

    prompts: list[Prompt]
    markers: frozenset[int]
    mask: int
    base: str


class TokenCharacters:
    """Stands for a vocabulary where there is no tokenizer: every token is one character.

    So drafts from repeated tokens are found, and those by rules of white space and brackets are not.
    """

    def __init__(self, size: int, markers: frozenset[int]) -> None:
        self.marker_ids = markers
        self.largest_id = size - 1

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(FIRST_CHARACTER + token) for token in ids)

    def encode(self, text: str) -> list[int]:
        return [ord(c) - FIRST_CHARACTER if ord(c) >= FIRST_CHARACTER else 0 for c in text]


def read_held_out(path: Path, count: int, longest: int, *, first_marker: int, pad: int) -> HeldOut:
    """Read the first ``count`` prompts of at most ``longest`` tokens, spread over the file."""
    with safe_open(path, "pt") as file:
        ids, starts, lengths, prefixes, kept = (
            file.get_tensor(name).long().tolist() for name in ("ids", "starts", "prompt", "prefix_at", "kept")
        )
        base = str(file.metadata()["base"])
    markers = frozenset(new for new, old in enumerate(kept) if old >= first_marker)
    fitting = [number for number, length in enumerate(lengths) if length <= longest]
    step = max(1, len(fitting) // count)
    prompts = []
    for number in fitting[::step][:count]:
        whole = ids[starts[number] : starts[number] + lengths[number]]
        at = prefixes[number]
        sides = ([token for token in side if token not in markers] for side in (whole[at:], whole[:at]))
        prompts.append(Prompt(whole, *sides))
    mask = kept.index(pad) if pad in kept else len(kept) - 1
    return HeldOut(prompts, markers, mask, base)


def load_coder(path: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """Load the weights of a GGUF file into transformers' class, on the device. Raises ``LoadError``."""
    model = on_device(AutoConfig.for_model(**config_fields(read_gguf(path))), device, dtype)
    wanted = dict(model.named_parameters())  # a head that is the embedding is one parameter
    weights = read_weights(path, dtype)
    if set(wanted) != set(weights):
        raise ValueError(f"{path} has other tensors than its network")
    for name, parameter in wanted.items():
        parameter.data.copy_(weights[name])
    read_weights.cache_clear()
    return model


@functools.cache
def read_weights(path: Path, dtype: torch.dtype) -> Mapping[str, torch.Tensor]:
    """Dequantise all tensors of a GGUF file into main memory. Raises ``LoadError``."""
    file = read_gguf(path)
    with ThreadPoolExecutor(READERS) as pool:
        return dict(pool.map(lambda name: (name, file.tensor(name).to(dtype)), file.tensors))


def shape_of(model: Any, name: str) -> Shape:
    config = model.config
    return Shape(
        name,
        config.hidden_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        int(model.model.layers[0].self_attn.head_dim),
        config.intermediate_size,
        config.vocab_size,
        tied=bool(config.tie_word_embeddings),
    )
