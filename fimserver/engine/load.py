"""Loads a model: finds its files, verifies them, builds the network in the wanted arithmetic, and probes it.

It reads local files and runs no remote code. Every mismatch is an error, never a warning.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import platformdirs
import torch

from fimserver.cards import Card, adapter_path
from fimserver.engine.device import free_gibs
from fimserver.engine.forward.fused import FusedModel, FusedWeights
from fimserver.engine.forward.int8 import is_exact
from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.engine.int8_model import int8_weights
from fimserver.engine.memory_plan import has_experts, require_memory
from fimserver.engine.native_model import native_model, repair_hint
from fimserver.engine.prompts.vocabulary import Vocabulary
from fimserver.engine.quantise import QUANTISED, quantise
from fimserver.engine.weights.arithmetic import choose
from fimserver.engine.weights.checkpoint import Checkpoint
from fimserver.engine.weights.formats import WeightFormat, format_of
from fimserver.engine.weights.int8_cache import can_quantize, int8_checkpoint
from fimserver.errors import LoadError, ModelMissingError
from fimserver.hashing import sha256
from fimserver.kept_json import change_kept, read_kept
from fimserver.types import Deadline

MANIFEST = "manifest.json"
_HASHES = platformdirs.user_cache_path("fimserver") / "hashes.json"
_PROBE_TEXT = "def add(a, b):\n    return a + b\n"


@dataclass(frozen=True)
class Loaded:
    """A checked model with its vocabulary: a class of transformers, or weights of the fused int8 network.

    ``model`` is a …ForCausalLM of transformers, or ``None`` if there are ``weights``.
    """

    card: Card
    folder: Path
    model: Any
    vocabulary: Vocabulary
    device: torch.device
    dtype: torch.dtype
    positions: int  # the longest text that the network was made for
    weights: FusedWeights | None = None


def load(card: Card, folder: Path, device: torch.device, quantize: str = "none") -> Loaded:
    """Read, verify and probe one model. ``quantize``: none, bf16, int8, int4 or auto.

    Raises ``ModelMissingError`` or ``LoadError``.
    """
    weight_format = format_of(card, folder)
    if weight_format is None:
        hint = f"run `fimserver models get {card.name}`" if card.hub else "reinstall fimserver"
        raise ModelMissingError(f"{card.name} is not in {folder}: {hint}")
    verify_files(card, folder)
    arithmetic = choose(quantize, card.parameters_m, device)
    if arithmetic == "int8" and device.type == "cpu" and not _is_full(card):
        loaded = _load_int8(card, folder, weight_format, asked=quantize == "int8")
        if loaded is not None:
            return loaded
        arithmetic = "none"
    return _load_native(card, folder, weight_format, device, arithmetic)


def _load_native(
    card: Card, folder: Path, weight_format: WeightFormat, device: torch.device, arithmetic: str
) -> Loaded:
    checkpoint = weight_format.read(card, folder)
    if _is_full(card):
        checkpoint.config.is_causal = False  # full attention (create_causal_mask)
    vocabulary = Vocabulary(checkpoint.tokenizer(), card)
    dtype = torch.float32 if device.type == "cpu" and arithmetic != "bf16" else torch.bfloat16
    quantised = arithmetic in QUANTISED
    if quantised and has_experts(checkpoint.config):
        raise LoadError(
            f"{card.name}: {arithmetic} does not support mixtures of experts: use --quantize none, or another"
            " model"
        )
    require_memory(card, checkpoint.config, arithmetic, free_gibs(device))
    # Weights are quantised one by one from the CPU, so that the device never holds all of them in bf16.
    model = native_model(card, folder, checkpoint, torch.device("cpu") if quantised else device, dtype)
    if quantised:
        quantise(model, arithmetic, device)
    positions = int(getattr(model.config, "max_position_embeddings", 1 << 30))
    loaded = Loaded(card, folder, model, vocabulary, device, dtype, positions)
    check_vocabulary(card, vocabulary, int(model.get_input_embeddings().weight.shape[0]))
    probe(loaded)
    return loaded


def _load_int8(card: Card, folder: Path, weight_format: WeightFormat, *, asked: bool) -> Loaded | None:
    """Load a model for the fused int8 network.

    ``None`` if that network does not support it and int8 was not ``asked`` for. Raises ``LoadError``.
    """
    if not is_exact():
        raise LoadError(
            "int8: this processor or this build of torch has no exact int8 products: use --quantize none or"
            " bf16"
        )

    def read() -> Checkpoint:
        checkpoint = weight_format.read(card, folder)
        if not can_quantize(checkpoint.config):
            raise _UnfitError(
                f"{card.name}: int8 on a CPU is for plain Qwen2, Qwen3 and Llama networks: use --quantize"
                " none"
            )
        return checkpoint

    try:
        kept = int8_checkpoint(files_hash(weight_format.files(card, folder)), read)
    except _UnfitError:
        if asked:
            raise
        return None
    vocabulary = Vocabulary(kept.tokenizer, card, kept.folder)
    check_vocabulary(card, vocabulary, len(kept.tensors["embedding"]))
    weights = int8_weights(kept)
    cpu = torch.device("cpu")
    loaded = Loaded(card, folder, None, vocabulary, cpu, torch.float32, kept.shape.positions, weights)
    _probe_int8(loaded)
    return loaded


class _UnfitError(LoadError):
    """A network that the fused int8 pass does not support."""


def _is_full(card: Card) -> bool:
    return card.canvas is not None and card.canvas.attention == "full"


def verify_files(card: Card, folder: Path) -> None:
    """Compare all files but drafters' with the hashes of the card or the download's manifest.

    Raises ``LoadError``.
    """
    drafters = set(card.drafters.values())
    _verify(
        card,
        folder,
        {name: wanted for name, wanted in _expected_hashes(card, folder).items() if name not in drafters},
    )


def drafter_file(loaded: Loaded, name: str) -> Path:
    """Return the path of a drafter's file among the adapters, or in the model's folder.

    One of the model's folder is compared with its hash, if that is known. Raises ``LoadError``.
    """
    path = adapter_path(loaded.folder, name)
    if path.is_file():
        return path
    expected = _expected_hashes(loaded.card, loaded.folder)
    _verify(loaded.card, loaded.folder, {name: expected[name]} if name in expected else {})
    return loaded.folder / name


def weights_hash(folder: Path) -> str:
    """Return the SHA-256 of a model's weights: of their file, or of the hashes of several files."""
    return files_hash(sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.gguf")))


def files_hash(paths: Sequence[Path]) -> str:
    """Return the SHA-256 of files like ``weights_hash``; each is hashed once per size and time."""
    known = read_kept(_HASHES)
    return _joined([str(known.get(_key(path)) or _hashed(path)) for path in paths])


def _hashed(path: Path) -> str:
    """Return the SHA-256 of a file, and store it."""
    found = sha256(path)
    change_kept(_HASHES, _key(path), lambda _: found)
    return found


def _joined(hashes: Sequence[str]) -> str:
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _key(path: Path) -> str:
    stat = path.stat()
    return f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"


def _verify(card: Card, folder: Path, expected: Mapping[str, str]) -> None:
    """Raise ``LoadError`` if a file has another hash. Each is hashed once per size and time."""
    known = read_kept(_HASHES)
    for name, wanted in expected.items():
        path = folder / name
        if not path.is_file():
            raise LoadError(f"{card.name}: {path} is missing: {repair_hint(card)}")
        if known.get(_key(path)) == wanted:
            continue
        if _hashed(path) != wanted:
            raise LoadError(
                f"{card.name}: {path} is damaged (its SHA-256 is not the expected one): {repair_hint(card)}"
            )


def probe(loaded: Loaded) -> None:
    """Run one pass; raise ``LoadError`` if logits are not finite, or a canvas ignores the suffix."""
    card = loaded.card
    vocabulary = loaded.vocabulary
    model = loaded.model
    text = vocabulary.encode(_PROBE_TEXT)
    # The suffix is first in the layout of a cached canvas, last in that of a full one.
    suffix, canvas = (-1, 0) if card.canvas and card.canvas.attention == "full" else (0, -1)
    ids = torch.tensor([text, text], device=loaded.device)
    ids[1, suffix] = text[1]
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits
    if not bool(torch.isfinite(logits).all()):
        raise _not_finite(card)
    if card.canvas and torch.equal(logits[0, canvas], logits[1, canvas]):
        raise LoadError(
            f"{card.name}: the canvas does not attend to the suffix: this model needs another version of"
            " fimserver"
        )


def _probe_int8(loaded: Loaded) -> None:
    """Run one pass of an int8 model; raise ``LoadError`` if its logits are not finite."""
    assert loaded.weights is not None
    text = loaded.vocabulary.encode(_PROBE_TEXT)
    logits = PrefixCache(FusedModel(loaded.weights, 32), 32, 32).prefill(text, Deadline(), want_logits=True)
    if logits is None or not bool(torch.isfinite(logits).all()):
        raise _not_finite(loaded.card)


def _not_finite(card: Card) -> LoadError:
    return LoadError(
        f"{card.name}: a test pass gave NaN or infinity, so the weights are damaged: {repair_hint(card)}"
    )


def check_vocabulary(card: Card, vocabulary: Vocabulary, rows: int) -> None:
    """Raise ``LoadError`` if the vocabulary has an id beyond the ``rows`` of the embedding."""
    too_large = [text for text, i in vocabulary.specials.items() if i >= rows]
    if too_large or vocabulary.largest_id >= rows:
        what = f"token {too_large[0]!r}" if too_large else f"token id {vocabulary.largest_id}"
        raise LoadError(
            f"{card.name}: {what} does not fit an embedding of {rows} rows: tokenizer of another model?"
        )


def _expected_hashes(card: Card, folder: Path) -> Mapping[str, str]:
    files = read_kept(folder / MANIFEST).get("files", {})
    return {str(name): str(value) for name, value in files.items()} | dict(card.files)
