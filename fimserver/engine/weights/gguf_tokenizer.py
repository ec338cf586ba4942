"""Builds the tokenizer of a GGUF file with the ``tokenizers`` library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from fimserver.errors import LoadError

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


class _Type(IntEnum):
    """Kinds of tokens (``tokenizer.ggml.token_type``)."""

    NORMAL = 1
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5


def _split(*patterns: str) -> list[Any]:
    return [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]


def _bytes() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def _qwen2(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*_split(rf"{_WORDS}|\p{{N}}|{_REST}"), _bytes()])


def _llama3(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*_split(rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}"), _bytes()]
    )


def _gpt2(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _starcoder(tokenizer: Tokenizer) -> None:
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _deepseek_coder(tokenizer: Tokenizer) -> None:
    splits = _split(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, digits, _bytes()])


# Pre-tokenizers by the name in ``tokenizer.ggml.pre``, equal to those in the families' tokenizer.json.
PRE_TOKENIZERS: Mapping[str, Callable[[Tokenizer], None]] = {
    "qwen2": _qwen2,
    "llama-bpe": _llama3,
    "gpt-2": _gpt2,
    "starcoder": _starcoder,
    "deepseek-coder": _deepseek_coder,
}


def make_tokenizer(metadata: Mapping[str, Any], name: str) -> Tokenizer:
    """Build a byte-level BPE from the metadata of the file ``name``. Raises ``LoadError``."""
    kind = metadata.get("tokenizer.ggml.model")
    cut = str(metadata.get("tokenizer.ggml.pre"))
    if kind != "gpt2" or cut not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise LoadError(
            f"{name}: its tokenizer ({kind}, {cut}) is not supported as GGUF (only gpt2 with {known}): get"
            " the model in safetensors"
        )
    tokens = metadata.get("tokenizer.ggml.tokens")
    merges = metadata.get("tokenizer.ggml.merges")
    if not tokens or not merges:
        raise LoadError(f"{name}: the file has no tokens or no merges: get another file")
    types = metadata.get("tokenizer.ggml.token_type") or [_Type.NORMAL] * len(tokens)
    vocabulary = {text: i for i, text in enumerate(tokens) if types[i] != _Type.UNUSED}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[tuple(pair.split(" ", 1)) for pair in merges]))
    PRE_TOKENIZERS[cut](tokenizer)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(_added(tokens, types, _Type.CONTROL))
    tokenizer.add_tokens(_added(tokens, types, _Type.USER_DEFINED))
    return tokenizer


def _added(tokens: list[str], types: list[int], kind: _Type) -> list[AddedToken]:
    special = kind is _Type.CONTROL
    return [
        AddedToken(text, special=special, normalized=False)
        for text, its_type in zip(tokens, types, strict=True)
        if its_type == kind
    ]
