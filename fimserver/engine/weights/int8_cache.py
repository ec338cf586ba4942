"""Cache of int8 weights on disk, so that later starts neither dequantise nor quantise.

A folder per model holds the packed matrices, the other weights, the embedding, the tokenizer, and
``meta.json`` with sizes, times and checksums of the files. It is written under another name and renamed; a
folder that does not match is written again.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import platformdirs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from fimserver.engine.forward.int8 import quantize_weight
from fimserver.engine.forward.packed import Packed, keeps_packed
from fimserver.engine.weights.checkpoint import Checkpoint
from fimserver.engine.weights.packed_file import PackedFile, file_sum, read_packed
from fimserver.errors import LoadError

log = logging.getLogger("fimserver.engine")
FOLDER = platformdirs.user_cache_path("fimserver") / "int8"
FORMAT = 2  # of the folder; one of another format is written again
VALUES = ".values"
MODEL_TYPES = ("qwen2", "qwen3", "llama")
_PRODUCTS = {  # name of the product -> the matrices that are concatenated
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


@dataclass(frozen=True)
class Int8Shape:
    """Sizes and constants of a network that its tensors do not show."""

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

    A matrix is in ``tensors`` under its name with ``.values``, or in ``packed``. ``folder``: the cache
    folder; ``None`` if it could not be written.
    """

    shape: Int8Shape
    tensors: Mapping[str, torch.Tensor]
    tokenizer: Tokenizer
    packed: Mapping[str, Packed] = field(default_factory=dict)
    folder: Path | None = None


def can_quantize(config: Any) -> bool:
    """Whether the fused int8 network supports this configuration of transformers."""
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
    """Return the int8 form of the weights with this hash from the cache, or make and store it.

    Raises ``LoadError`` if the checkpoint cannot be read.
    """
    place = (folder or FOLDER) / f"{digest[:32]}-v{FORMAT}"
    if (kept := _read(place)) is not None:
        return kept
    try:
        _write(read(), place)
    except OSError as error:
        log.warning(
            "int8 weights could not be stored in %s (%s): the next start will be slow again", place, error
        )
    else:
        if (kept := _read(place)) is not None:
            return kept
    checkpoint = read()
    return Int8Checkpoint(shape_of(checkpoint), dict(quantized(checkpoint)), checkpoint.tokenizer())


def quantized(checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of an int8 checkpoint with their names, each made on demand.

    Raises ``LoadError`` if a tensor is missing or not finite.
    """
    for name, tensor in _tensors(checkpoint):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise LoadError(
                f"{name} holds NaN or infinity: the weights are damaged, download the model again"
            )
        yield name, tensor
        del tensor  # before the next one is made


def _tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    shape = shape_of(checkpoint)
    tied = bool(checkpoint.config.tie_word_embeddings)
    yield (
        "embedding",
        torch.cat([rows.half() for rows in checkpoint.pieces("model.embed_tokens.weight")]),
    )
    yield "norm", checkpoint.tensor("model.norm.weight")
    yield from _product(checkpoint, "head", ["model.embed_tokens" if tied else "lm_head"], bias=False)
    for index in range(shape.layers):
        yield from _layer(checkpoint, shape, index)


def shape_of(checkpoint: Checkpoint) -> Int8Shape:
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


def _layer(checkpoint: Checkpoint, shape: Int8Shape, index: int) -> Iterator[tuple[str, torch.Tensor]]:
    prefix = f"model.layers.{index}."
    yield f"{index}.input_norm", checkpoint.tensor(f"{prefix}input_layernorm.weight")
    yield f"{index}.mlp_norm", checkpoint.tensor(f"{prefix}post_attention_layernorm.weight")
    for name, parts in _PRODUCTS.items():
        sources = [prefix + part for part in parts]
        yield from _product(checkpoint, f"{index}.{name}", sources, bias=shape.bias and name == "qkv")
    if shape.qk_norm:
        yield f"{index}.q_norm", checkpoint.tensor(f"{prefix}self_attn.q_norm.weight")
        yield f"{index}.k_norm", checkpoint.tensor(f"{prefix}self_attn.k_norm.weight")


def _product(
    checkpoint: Checkpoint, name: str, sources: list[str], *, bias: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield values, scales and bias of several matrices over the same input, concatenated."""
    pieces = (rows for source in sources for rows in checkpoint.pieces(f"{source}.weight"))
    values, scales = quantize_weight(pieces)
    yield f"{name}.scales", scales
    if bias:
        yield f"{name}.bias", torch.cat([checkpoint.tensor(f"{source}.bias") for source in sources])
    yield f"{name}{VALUES}", values


def _write(checkpoint: Checkpoint, place: Path) -> None:
    """Quantise a checkpoint into a temporary folder, matrix by matrix, then rename that."""
    part = place.with_name(f"{place.name}.{os.getpid()}.part")
    part.mkdir(parents=True, exist_ok=True)
    try:
        _write_tensors(quantized(checkpoint), part)
        text = checkpoint.tokenizer().to_str()  # the tokenizer's own save() hides a full disk
        (part / "tokenizer.json").write_text(text, "utf-8")
        files = {path.name: _stamp(path) for path in part.iterdir()}
        sums = {name: file_sum(part / name) for name in files}
        meta = {"format": FORMAT, "shape": asdict(shape_of(checkpoint)), "files": files, "sums": sums}
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


def _write_tensors(tensors: Iterator[tuple[str, torch.Tensor]], folder: Path) -> None:
    """Write tensors to the files of a folder; packed matrices are written one at a time."""
    rest = {}
    with PackedFile(folder) if keeps_packed() else nullcontext() as packed:
        for name, tensor in tensors:
            if name == "embedding":  # a file of its own, which stays mapped: few of its rows are used
                save_file({name: tensor}, folder / "embedding.safetensors")
            elif packed and name.endswith(VALUES):
                packed.add(name.removesuffix(VALUES), tensor)
            else:
                rest[name] = tensor
            del tensor  # before the next one is made
    save_file(rest, folder / "weights.safetensors")


def _read(place: Path) -> Int8Checkpoint | None:
    """Read a cache folder; ``None`` if it is missing, of another format, or changed since it was written."""
    try:
        meta = json.loads((place / "meta.json").read_text("utf-8"))
        if meta["format"] != FORMAT or any(
            _stamp(place / name) != stamp for name, stamp in meta["files"].items()
        ):
            return None
        _check_sums(place, meta.get("sums", {}))
        tensors = load_file(place / "weights.safetensors") | load_file(place / "embedding.safetensors")
        tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
        return Int8Checkpoint(Int8Shape(**meta["shape"]), tensors, tokenizer, read_packed(place), place)
    except Exception as error:  # noqa: BLE001 - a damaged file makes the libraries fail in many ways
        if place.exists():
            log.warning("int8 weights in %s cannot be used (%s): they are made again", place, error)
        return None


def _stamp(path: Path) -> list[int]:
    """Return size and modification time, which show whether a file was truncated or replaced."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _check_sums(place: Path, sums: Mapping[str, int]) -> None:
    """Raise ``ValueError`` if a file has another checksum.

    After a crash or on a bad disk a file may have its size and time, but zeros in its last pages.
    """
    for name, wanted in sums.items():
        if file_sum(place / name) != wanted:
            raise ValueError(f"{name} is damaged")
