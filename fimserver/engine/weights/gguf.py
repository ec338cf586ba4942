"""Reader of GGUF checkpoints: metadata, configuration and dequantised tensors, by the ``gguf`` library."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import torch
import transformers
from gguf.quants import dequantize

from fimserver.cards import Card
from fimserver.engine.weights.checkpoint import Checkpoint
from fimserver.engine.weights.gguf_tokenizer import make_tokenizer
from fimserver.errors import LoadError

transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
ROWS_AT_ONCE = 4096  # of a matrix, as dequantising takes several times their size in memory
_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER = re.compile(r"^blk\.(\d+)\.([a-z_]+)\.(weight|bias)$")
# llama.cpp's converter reorders the query and key channels of this architecture for its rotary kernel.
_INTERLEAVED = {"llama"}
_FIELDS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "max_position_embeddings": "context_length",
}
# Keys for variants of the network that the configuration below cannot express.
_REFUSED = ("rope.scaling.type", "rope.scaling.factor", "attention.sliding_window", "expert_count")


@dataclass(frozen=True)
class GGUFFile:
    """One checkpoint, of one file or several shards; tensors have transformers' names."""

    paths: tuple[Path, ...]
    metadata: Mapping[str, Any]
    tensors: Mapping[str, gguf.ReaderTensor]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    @property
    def parameters(self) -> int:
        """Number of weights, an untied head included."""
        return sum(int(tensor.n_elements) for tensor in self.tensors.values())

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor in torch's order. Raises ``LoadError`` if the file lacks it."""
        return tuple(reversed([int(size) for size in self._stored(name).shape]))

    def rows(self, name: str) -> Iterator[torch.Tensor]:
        """Yield a tensor in fp32, in pieces of at most ``ROWS_AT_ONCE`` rows. Raises ``LoadError``."""
        stored = self._stored(name)
        heads = self._interleaved_heads(name)
        step = len(stored.data) if heads else ROWS_AT_ONCE
        for start in range(0, len(stored.data), step):
            try:
                values = dequantize(stored.data[start : start + step], stored.tensor_type)
            except (NotImplementedError, ValueError) as error:
                raise LoadError(f"{self.paths[0]}: {name} cannot be dequantised: {error}") from None
            rows = torch.from_numpy(values.astype("float32"))
            yield _split_halves(rows, heads) if heads else rows

    def tensor(self, name: str) -> torch.Tensor:
        """Return a whole tensor in fp32. Raises ``LoadError``."""
        return torch.cat(list(self.rows(name)))

    def _stored(self, name: str) -> gguf.ReaderTensor:
        if name not in self.tensors:
            raise LoadError(
                f"{self.paths[0]}: the file lacks the tensor {name}: download it again, or another file"
            )
        return self.tensors[name]

    def _interleaved_heads(self, name: str) -> int:
        """Return the number of heads whose channels have to be reordered for transformers; 0 for none."""
        if self.architecture not in _INTERLEAVED:
            return 0
        if ".self_attn.q_proj." in name:
            return int(self.metadata[f"{self.architecture}.attention.head_count"])
        if ".self_attn.k_proj." in name:
            return int(self.metadata[f"{self.architecture}.attention.head_count_kv"])
        return 0


def read_gguf(path: Path) -> GGUFFile:
    """Open a GGUF file, or all shards if it is one of several. Raises ``LoadError``."""
    paths = shards(path)
    readers = [_open(shard) for shard in paths]
    tensors: dict[str, gguf.ReaderTensor] = {}
    for reader in readers:
        for tensor in reader.tensors:
            tensors[_transformers_name(path, tensor.name)] = tensor
    return GGUFFile(tuple(paths), _metadata(readers[0]), tensors)


def shards(path: Path) -> Sequence[Path]:
    """Return the shards of a model, in order. Raises ``LoadError`` if one is missing."""
    match = SHARD.match(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    paths = [path.with_name(f"{match['stem']}-{n:05d}-of-{count:05d}.gguf") for n in range(1, count + 1)]
    if missing := next((shard for shard in paths if not shard.is_file()), None):
        raise LoadError(f"{missing} is missing: the model is in {count} files, put all of them in one folder")
    return paths


def config_fields(file: GGUFFile) -> dict[str, Any]:
    """Return the fields of transformers' configuration, with ``model_type``. Raises ``LoadError``."""
    architecture = file.architecture
    if architecture not in {"qwen2", "qwen3", "llama"}:
        raise LoadError(
            f"{file.paths[0]}: the architecture {architecture!r} is not supported as GGUF: get the model in"
            " safetensors"
        )
    values = _values(file, architecture)
    for key in _REFUSED:
        if values.get(key) not in {None, 0, "none"}:
            raise LoadError(
                f"{file.paths[0]}: {architecture}.{key} = {values[key]} is not supported: get another variant"
            )
    if missing := next((key for key in _FIELDS.values() if key not in values), None):
        raise LoadError(
            f"{file.paths[0]}: the metadata lacks {architecture}.{missing}, perhaps an old file: get"
            " another one"
        )
    fields = {name: values[key] for name, key in _FIELDS.items()}
    heads = int(fields["num_attention_heads"])
    return fields | {
        "model_type": architecture,
        "vocab_size": file.shape("model.embed_tokens.weight")[0],
        "head_dim": int(values.get("attention.key_length") or fields["hidden_size"] // heads),
        "hidden_act": "silu",
        "tie_word_embeddings": "lm_head.weight" not in file.tensors,
        "attention_bias": "model.layers.0.self_attn.q_proj.bias" in file.tensors,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": float(values.get("rope.freq_base", 10000.0)),
        },
    }


def _values(file: GGUFFile, architecture: str) -> dict[str, Any]:
    """Return the metadata of the architecture, without the prefix of the keys."""
    prefix = f"{architecture}."
    return {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}


def _open(path: Path) -> gguf.GGUFReader:
    if not path.is_file():
        raise LoadError(f"{path} is not a file")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise LoadError(f"{path} is not a GGUF file")
    try:
        return gguf.GGUFReader(path)
    # The library trusts the file, so a damaged one raises errors of many types.
    except Exception as error:  # noqa: BLE001
        text = str(error).splitlines()[0][:120] if str(error) else ""
        raise LoadError(
            f"{path} is incomplete or damaged ({type(error).__name__}: {text}): download it again"
        ) from None


def _metadata(reader: gguf.GGUFReader) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}


def _transformers_name(path: Path, name: str) -> str:
    if name in _TOP:
        return _TOP[name]
    match = _LAYER.match(name)
    if match is None or match[2] not in _IN_LAYER:
        raise LoadError(
            f"{path}: unknown tensor {name}: this network is not supported as GGUF, get it in safetensors"
        )
    return f"model.layers.{match[1]}.{_IN_LAYER[match[2]]}.{match[3]}"


def _split_halves(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder the interleaved rotary pairs of each head, (2 i, 2 i + 1), to (i, i + D / 2)."""
    pairs = rows.view(heads, -1, 2, *rows.shape[1:])
    return pairs.transpose(1, 2).reshape(rows.shape)


def open_checkpoint(card: Card, path: Path) -> Checkpoint:
    """Open a GGUF file, with all of its shards, as a checkpoint. Raises ``LoadError``."""
    file = read_gguf(path)
    if file.architecture != card.architecture:
        raise LoadError(
            f"{card.name}: {path} holds {file.architecture!r}, the card says {card.architecture!r}: get the"
            " file that the card names"
        )
    fields = config_fields(file)
    config = transformers.AutoConfig.for_model(**fields)
    return Checkpoint(
        config,
        file.rows,
        lambda: make_tokenizer(file.metadata, path.name),
        lambda device, dtype: _read_model(file, config, device, dtype),
    )


def _read_model(
    file: GGUFFile, config: Any, device: torch.device | str, dtype: torch.dtype
) -> tuple[Any, dict[str, Any]]:
    with torch.device("meta"):
        made: Any = transformers.AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        native: Any = type(made)
    model, info = native.from_pretrained(
        None,
        config=config,
        state_dict={name: file.tensor(name).to(dtype) for name in file.tensors},
        dtype=dtype,
        device_map={"": torch.device(device)},
        attn_implementation="sdpa",
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    return model, info
