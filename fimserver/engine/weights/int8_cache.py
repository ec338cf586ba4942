"""Int8 weights of a checkpoint, kept in the cache folder.

So a later start neither dequantises nor quantises.

A folder holds the matrices as the processor multiplies them, the other weights, the embedding, the tokenizer,
and ``meta.json`` with what the other files have to look like. It is written under another name and renamed;
whatever does not fit is made again.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import platformdirs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from fimserver.engine.forward.int8 import quantize_weight
from fimserver.engine.forward.packed import Packed
from fimserver.engine.weights.checkpoint import Checkpoint
from fimserver.engine.weights.packed_file import read_packed, write_packed
from fimserver.errors import LoadError

log = logging.getLogger("fimserver.engine")
FOLDER = platformdirs.user_cache_path("fimserver") / "int8"
FORMAT = 2  # a cache of another number is made again
VALUES = ".values"
MODEL_TYPES = ("qwen2", "qwen3", "llama")
_PRODUCTS = {  # by the name of the product: the matrices that are joined, and whether they may have biases
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


@dataclass(frozen=True)
class Int8Shape:
    """The sizes that the tensors do not say themselves."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    theta: float
    positions: int
    bias: bool
    qk_norm: bool


@dataclass(frozen=True)
class Int8Checkpoint:
    """Int8 matrices with their scales, fp32 norms and biases, an fp16 embedding, and the tokenizer.

    A matrix is among the ``tensors``, its name followed by ``.values``, or ``packed``. ``folder``: where all
    this is kept, if it is.
    """

    shape: Int8Shape
    tensors: Mapping[str, torch.Tensor]
    tokenizer: Tokenizer
    packed: Mapping[str, Packed] = field(default_factory=dict)
    folder: Path | None = None


def can_quantize(config: Any) -> bool:
    """Whether the int8 pass computes what this configuration of transformers asks for."""
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        config.model_type in MODEL_TYPES
        and config.hidden_act == "silu"
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and getattr(config, "pretraining_tp", 1) == 1
        and not getattr(config, "mlp_bias", False)
        and rope.get("rope_type", "default") == "default"
    )


def int8_checkpoint(
    digest: str, read: Callable[[], Checkpoint], folder: Path | None = None
) -> Int8Checkpoint:
    """The int8 form of the weights with this hash: from the cache, else from the checkpoint, and kept.

    Raises ``LoadError`` where the checkpoint cannot be read.
    """
    place = (folder or FOLDER) / f"{digest[:32]}-v{FORMAT}"
    if (kept := _read(place)) is not None:
        return kept
    made = quantized(read())
    try:
        _write(made, place)
    except OSError as error:
        log.warning(
            "int8 weights could not be kept in %s (%s): the next start will be slow again", place, error
        )
        return made
    return _read(place) or made


def quantized(checkpoint: Checkpoint) -> Int8Checkpoint:
    """Quantise every matrix of a checkpoint. Raises ``LoadError`` where a tensor is missing or not finite."""
    shape = _shape(checkpoint)
    tied = bool(checkpoint.config.tie_word_embeddings)
    tensors = {
        "embedding": torch.cat([rows.half() for rows in checkpoint.pieces("model.embed_tokens.weight")]),
        "norm": checkpoint.tensor("model.norm.weight"),
        **_product(checkpoint, "head", ["model.embed_tokens" if tied else "lm_head"], bias=False),
    }
    for index in range(shape.layers):
        tensors |= _layer(checkpoint, shape, index)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise LoadError(f"{name} holds NaN or infinity: the weights are damaged, get the model again")
    return Int8Checkpoint(shape, tensors, checkpoint.tokenizer())


def _shape(checkpoint: Checkpoint) -> Int8Shape:
    config = checkpoint.config
    heads = int(config.num_attention_heads)
    return Int8Shape(
        layers=int(config.num_hidden_layers),
        heads=heads,
        kv_heads=int(config.num_key_value_heads),
        head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        eps=float(config.rms_norm_eps),
        theta=float(config.rope_parameters["rope_theta"]),
        positions=int(config.max_position_embeddings),
        bias=config.model_type == "qwen2" or bool(getattr(config, "attention_bias", False)),
        qk_norm=config.model_type == "qwen3",
    )


def _layer(checkpoint: Checkpoint, shape: Int8Shape, index: int) -> dict[str, torch.Tensor]:
    prefix = f"model.layers.{index}."
    tensors = {
        f"{index}.input_norm": checkpoint.tensor(f"{prefix}input_layernorm.weight"),
        f"{index}.mlp_norm": checkpoint.tensor(f"{prefix}post_attention_layernorm.weight"),
    }
    for name, parts in _PRODUCTS.items():
        sources = [prefix + part for part in parts]
        tensors |= _product(checkpoint, f"{index}.{name}", sources, bias=shape.bias and name == "qkv")
    if shape.qk_norm:
        tensors[f"{index}.q_norm"] = checkpoint.tensor(f"{prefix}self_attn.q_norm.weight")
        tensors[f"{index}.k_norm"] = checkpoint.tensor(f"{prefix}self_attn.k_norm.weight")
    return tensors


def _product(checkpoint: Checkpoint, name: str, sources: list[str], *, bias: bool) -> dict[str, torch.Tensor]:
    """Values, scales and bias of several matrices over the same input, joined."""
    pieces = (rows for source in sources for rows in checkpoint.pieces(f"{source}.weight"))
    values, scales = quantize_weight(pieces)
    made = {f"{name}{VALUES}": values, f"{name}.scales": scales}
    if bias:
        made[f"{name}.bias"] = torch.cat([checkpoint.tensor(f"{source}.bias") for source in sources])
    return made


def _write(made: Int8Checkpoint, place: Path) -> None:
    """Write a cache folder under another name, then rename it."""
    part = place.with_name(f"{place.name}.{os.getpid()}.part")
    part.mkdir(parents=True, exist_ok=True)
    try:
        # The embedding is looked up row by row and stays in its file, as the matrices do.
        save_file({"embedding": made.tensors["embedding"]}, part / "embedding.safetensors")
        rest = {name: tensor for name, tensor in made.tensors.items() if name != "embedding"}
        matrices = [name for name in rest if name.endswith(VALUES)]
        if write_packed({name.removesuffix(VALUES): rest[name] for name in matrices}, part):
            rest = {name: tensor for name, tensor in rest.items() if name not in matrices}
        save_file(rest, part / "weights.safetensors")
        (part / "tokenizer.json").write_text(made.tokenizer.to_str(), "utf-8")  # its save() hides a full disk
        files = {path.name: _stamp(path) for path in part.iterdir()}
        meta = {"format": FORMAT, "shape": asdict(made.shape), "files": files}
        (part / "meta.json").write_text(json.dumps(meta), "utf-8")
        if place.exists():
            shutil.rmtree(place)
        part.replace(place)
        for other in place.parent.glob(f"{place.name.rpartition('-v')[0]}-v*"):
            if other != place and other.suffix != ".part":
                shutil.rmtree(other, ignore_errors=True)  # of another version of fimserver
    except SafetensorError as error:
        raise OSError(str(error)) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _read(place: Path) -> Int8Checkpoint | None:
    """A cache folder, or ``None`` where it is missing, of another format, or changed since it was written."""
    try:
        meta = json.loads((place / "meta.json").read_text("utf-8"))
        if meta["format"] != FORMAT or any(
            _stamp(place / name) != stamp for name, stamp in meta["files"].items()
        ):
            return None
        tensors = load_file(place / "weights.safetensors") | load_file(place / "embedding.safetensors")
        tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
        return Int8Checkpoint(Int8Shape(**meta["shape"]), tensors, tokenizer, read_packed(place), place)
    except Exception as error:  # noqa: BLE001 - a damaged file makes the libraries fail in many ways
        if place.exists():
            log.warning("int8 weights in %s do not fit (%s): they are made again", place, error)
        return None


def _stamp(path: Path) -> list[int]:
    """Size and modification time: bytes that change without either are not noticed."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]
