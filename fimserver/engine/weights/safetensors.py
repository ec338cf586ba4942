"""Reader of checkpoints in the hub's layout: safetensors, ``config.json`` and tokenizer files.

Only classes of transformers are used, no remote code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from fimserver.cards import Card
from fimserver.engine.device import device_map
from fimserver.engine.prompts.vocabulary import read_tokenizer
from fimserver.engine.weights.checkpoint import Checkpoint
from fimserver.engine.weights.llada import KEYS, llama_fields
from fimserver.engine.weights.llada2 import glm4_moe_fields, glm4_moe_tensors
from fimserver.errors import LoadError

transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
ROWS_AT_ONCE = 8192
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "max_position_embeddings",
)
_QWEN3 = ("head_dim", "attention_bias")
_OPTIONAL = ("tie_word_embeddings", "hidden_act")
# Fields of other families that change positions or the span of attention, with the values that do not.
_REFUSED: Mapping[str, tuple[Any, ...]] = {
    "rope_scaling": (None,),
    "use_sliding_window": (None, False),
    "use_mrope": (None, False),
    "partial_rotary_factor": (None, 1.0),
}


def open_checkpoint(card: Card, folder: Path) -> Checkpoint:
    """Open the checkpoint of a folder. Raises ``LoadError``."""
    config = read_config(card, folder)

    def native(device: torch.device | str, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
        return _read_model(card, folder, config, device, dtype)

    return Checkpoint(config, _Tensors(card, folder).pieces, lambda: read_tokenizer(folder, card), native)


def read_config(card: Card, folder: Path) -> Any:
    """Return transformers' configuration; that of other families is built from their fields.

    Raises ``LoadError``.
    """
    try:
        raw = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        raw = {}
    if not isinstance(raw, dict) or raw.get("model_type") != card.architecture:
        kind = raw.get("model_type") if isinstance(raw, dict) else None
        raise LoadError(
            f"{card.name}: config.json says {kind!r}, the card {card.architecture!r}: the files are another"
            " model's, get the right ones"
        )
    if card.loads_as == "qwen2":
        return transformers.Qwen2Config(**_qwen_fields(card, raw))
    if card.loads_as == "qwen3":
        return transformers.Qwen3Config(**_qwen_fields(card, raw, _QWEN3))
    if card.loads_as == "llama":
        return transformers.LlamaConfig(**llama_fields(card, raw))
    if card.loads_as == "glm4_moe":
        return transformers.Glm4MoeConfig(**glm4_moe_fields(card, raw))
    try:
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        line = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise LoadError(
            f"{card.name}: config.json in {folder} cannot be read ({line}): download the model again"
        ) from None


def _qwen_fields(card: Card, raw: Mapping[str, Any], more: Sequence[str] = ()) -> dict[str, Any]:
    """Return the fields of Qwen2's or Qwen3's configuration from those of a family with the same tensors.

    ``more``: fields besides those that both have. Raises ``LoadError``.
    """
    if missing := next((name for name in (*_SIZES, *more) if name not in raw), None):
        raise LoadError(f"{card.name}: config.json has no {missing}: it cannot be read as {card.loads_as}")
    for name, harmless in _REFUSED.items():
        if raw.get(name) not in harmless:
            raise LoadError(
                f"{card.name}: config.json has {name} = {raw[name]!r}, which is not supported here"
            )
    if raw.get("sliding_window") and raw.get("use_sliding_window", True):
        raise LoadError(f"{card.name}: config.json has a sliding window, which is not supported here")
    rope = dict(raw.get("rope_parameters") or {})
    theta = rope.pop("rope_theta", raw.get("rope_theta"))
    if theta is None or rope.pop("rope_type", "default") != "default" or rope:
        raise LoadError(
            f"{card.name}: config.json has no plain rope_theta: its positions are not supported here"
        )
    known = {name: raw[name] for name in (*_SIZES, *more, *_OPTIONAL) if name in raw}
    return known | {"rope_parameters": {"rope_type": "default", "rope_theta": float(theta)}}


class _Tensors:
    """Tensors of all safetensors files of a folder, by name."""

    def __init__(self, card: Card, folder: Path) -> None:
        self.card = card
        self.folder = folder

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        tensor = self._find(name)
        for start in range(0, len(tensor), ROWS_AT_ONCE):
            yield tensor[start : start + ROWS_AT_ONCE].float()

    def _find(self, name: str) -> torch.Tensor:
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(path, "pt") as file:
                    if name in file.keys():  # noqa: SIM118 - not a mapping
                        found: torch.Tensor = file.get_tensor(name)
                        return found
            except (SafetensorError, OSError) as error:
                raise LoadError(
                    f"{self.card.name}: {path} cannot be read ({error}): download the model again"
                ) from None
        raise LoadError(f"{self.card.name}: the checkpoint lacks tensor {name}: download the model again")


def _read_model(
    card: Card, folder: Path, config: Any, device: torch.device | str, dtype: torch.dtype
) -> tuple[Any, dict[str, Any]]:
    options: dict[str, Any] = {
        "config": config,
        "dtype": dtype,
        "device_map": device_map(card.weights_gib, torch.device(device)),
        "attn_implementation": "sdpa",
        "use_safetensors": True,
        "local_files_only": True,
        "trust_remote_code": False,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # so that ``native_model`` reports them with the other problems
    }
    result: Any
    if card.loads_as == "glm4_moe":
        tensors = dict(glm4_moe_tensors(config, _read_all(folder)))
        result = transformers.Glm4MoeForCausalLM.from_pretrained(None, state_dict=tensors, **options)
    else:
        keys = dict(KEYS) if card.loads_as == "llama" else None
        result = transformers.AutoModelForCausalLM.from_pretrained(folder, key_mapping=keys, **options)
    model, info = result
    return model, info


def _read_all(folder: Path) -> dict[str, torch.Tensor]:
    """Read all tensors of a folder, mapped into memory."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors
