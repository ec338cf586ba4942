"""Knows how the files of a checkpoint become a network that can be trusted. Knows nothing of prompts or decoding.

Local files, safetensors, transformers' own classes, no remote code. Whatever does not fit is an error, never a warning.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import platformdirs
import torch
import transformers
from safetensors import SafetensorError

from fimserver.cards import Card
from fimserver.engine.vocabulary import Vocabulary, read_tokenizer
from fimserver.errors import LoadError, ModelMissingError
from fimserver.hashing import sha256

MANIFEST = "manifest.json"
transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
_HASHES = platformdirs.user_cache_path("fimserver") / "hashes.json"
_HARMLESS = "rotary_emb.inv_freq"  # a buffer that old checkpoints stored; it is computed
_QWEN2_FIELDS = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "max_position_embeddings",
    "tie_word_embeddings",
    "hidden_act",
]


@dataclass(frozen=True)
class Loaded:
    """A checked model with its vocabulary."""

    card: Card
    folder: Path
    model: Any  # a …ForCausalLM of transformers
    vocabulary: Vocabulary
    device: torch.device
    dtype: torch.dtype


def load(card: Card, folder: Path, device: torch.device, quantize: str = "none") -> Loaded:
    """Read, verify and probe one model. Raises ``ModelMissingError`` or ``LoadError``."""
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        hint = f"run `fimserver models get {card.name}`" if card.hub else "reinstall fimserver"
        raise ModelMissingError(f"{card.name} is not in {folder}: {hint}")
    verify_files(card, folder)
    vocabulary = Vocabulary(read_tokenizer(folder, card), card)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    model = _read_model(card, folder, device, dtype)
    if quantize == "int8":
        _quantize_int8(model)
    loaded = Loaded(card, folder, model, vocabulary, device, dtype)
    check_vocabulary(loaded)
    probe(loaded)
    return loaded


def verify_files(card: Card, folder: Path) -> None:
    """Compare every file but drafters' with the hashes of the card, or of the manifest that the download wrote."""
    drafters = set(card.drafters.values())
    _verify(card, folder, {name: wanted for name, wanted in _expected_hashes(card, folder).items() if name not in drafters})


def verify_file(loaded: Loaded, name: str) -> str:
    """The same for one file, where a hash is known. Raises ``LoadError``; else gives the name back."""
    expected = _expected_hashes(loaded.card, loaded.folder)
    _verify(loaded.card, loaded.folder, {name: expected[name]} if name in expected else {})
    return name


def weights_hash(folder: Path) -> str:
    """One SHA-256 that says which weights these are: of the file, or of the shards' hashes."""
    hashes = [sha256(path) for path in sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.gguf"))]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _verify(card: Card, folder: Path, expected: Mapping[str, str]) -> None:
    """A file is hashed once per size and modification time."""
    known = _read_json(_HASHES)
    for name, wanted in expected.items():
        path = folder / name
        if not path.is_file():
            raise LoadError(f"{card.name}: {path} is missing: {_again(card)}")
        stat = path.stat()
        key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        if known.get(key) == wanted:
            continue
        if sha256(path) != wanted:
            raise LoadError(f"{card.name}: {path} is damaged (its SHA-256 is not the expected one): {_again(card)}")
        known[key] = wanted
    _write_json(_HASHES, known)


def probe(loaded: Loaded) -> None:
    """One forward pass. Its logits must be finite; on a dllm card, a suffix token must reach the canvas."""
    card, vocabulary, model = loaded.card, loaded.vocabulary, loaded.model
    text = vocabulary.encode("def add(a, b):\n    return a + b\n")
    # The suffix stands first in the layout of a cached canvas, last in that of a full one.
    suffix, canvas = (-1, 0) if card.canvas and card.canvas.attention == "full" else (0, -1)
    ids = torch.tensor([text, text], device=loaded.device)
    ids[1, suffix] = text[1]
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits
    if not bool(torch.isfinite(logits).all()):
        raise LoadError(f"{card.name}: a test pass gave NaN or infinity; its weights are damaged: {_again(card)}")
    if card.canvas and torch.equal(logits[0, canvas], logits[1, canvas]):
        raise LoadError(f"{card.name}: the canvas does not see the suffix; this model needs another fimserver version")


def check_vocabulary(loaded: Loaded) -> None:
    """Every id that text or a prompt can produce must have an embedding."""
    rows = int(loaded.model.get_input_embeddings().weight.shape[0])
    too_large = [text for text, i in loaded.vocabulary.specials.items() if i >= rows]
    if too_large or loaded.vocabulary.largest_id >= rows:
        what = f"token {too_large[0]!r}" if too_large else f"token id {loaded.vocabulary.largest_id}"
        raise LoadError(f"{loaded.card.name}: {what} does not fit an embedding of {rows} rows: tokenizer of another model?")


def device_map(card: Card, device: torch.device, free: list[float]) -> str | Mapping[str, Any]:
    """One device when the weights fit with a fifth to spare, else accelerate's ``auto`` (several GPUs, then CPU)."""
    if device.type == "cpu" or card.weights_gib * 1.2 <= free[0]:
        return {"": device}
    return "auto"


def _read_model(card: Card, folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    free = [torch.cuda.mem_get_info(i)[0] / 2**30 for i in range(torch.cuda.device_count())] or [0.0]
    try:
        result: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            config=_read_config(card, folder),
            dtype=dtype,
            device_map=device_map(card, device, free),
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are listed, and refused, with the others
        )
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise LoadError(f"{card.name}: weights in {folder} cannot be read ({_line(error)}): {_again(card)}") from None
    model, info = result
    for problem in _problems(info):
        raise LoadError(f"{card.name}: {problem}: {_again(card)}")
    return model.eval().requires_grad_(False)


def _read_config(card: Card, folder: Path) -> Any:
    """The native configuration. Families that transformers does not know are rebuilt from known fields."""
    raw = _read_json(folder / "config.json")
    if raw.get("model_type") != card.architecture:
        raise LoadError(
            f"{card.name}: config.json says {raw.get('model_type')!r}, the card {card.architecture!r}: another model's files?"
        )
    if card.loads_as == "qwen2":
        fields = {name: raw[name] for name in _QWEN2_FIELDS if name in raw}
        rope = {"rope_type": "default", "rope_theta": float(raw.get("rope_theta", 1e6))}
        config: Any = transformers.Qwen2Config(**fields, rope_parameters=rope)
    else:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if card.canvas and card.canvas.attention == "full":
        config.is_causal = False  # every position sees every other (create_causal_mask)
    return config


def _problems(info: Mapping[str, Any]) -> Iterator[str]:
    """What a strict load would have refused, one line each."""
    for kind, text in (("missing_keys", "lacks tensor"), ("unexpected_keys", "has an unknown tensor"),
                       ("mismatched_keys", "has a tensor of another shape:")):  # fmt: skip
        for key in sorted(map(str, info.get(kind, ()))):
            if _HARMLESS not in key:
                yield f"the checkpoint {text} {key}"
    yield from map(str, info.get("error_msgs", ()))


def _quantize_int8(model: Any) -> None:
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_  # noqa: PLC0415 - optional
    except ImportError:
        raise LoadError("int8 needs torchao: `pip install 'fimserver[int8]'`") from None
    quantize_(model, Int8WeightOnlyConfig())


def _expected_hashes(card: Card, folder: Path) -> Mapping[str, str]:
    files = _read_json(folder / MANIFEST).get("files", {})
    return {str(name): str(value) for name, value in files.items()} | dict(card.files)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Best effort: without a writable cache files are hashed again next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(value), "utf-8")
        part.replace(path)
    except OSError:
        pass


def _again(card: Card) -> str:
    return f"run `fimserver models get {card.name}`" if card.hub else "reinstall fimserver"


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:160]}" if str(error) else type(error).__name__
