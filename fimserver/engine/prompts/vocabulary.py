"""Vocabulary: text to token ids and back, and the special tokens by their names.

User text never yields a special token.
"""

from __future__ import annotations

import contextlib
import functools
import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer

from fimserver.cards import Card
from fimserver.errors import LoadError
from fimserver.kept_json import read_kept, write_kept

KEPT_TEXTS = 32
LAST = "\U0010ffff"  # after every character
_MARKER = re.compile(r"^(<.*>|\[.*\])$", re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")


class TokensByText(NamedTuple):
    """The texts of tokens in order, the token of each, and the largest id, also of those without text."""

    texts: list[str]
    ids: list[int]
    largest_id: int

    def beginning_with(self, start: str) -> list[int]:
        """The tokens whose text begins with ``start``."""
        return self.ids[bisect_left(self.texts, start) : bisect_left(self.texts, start + LAST)]


class Vocabulary:
    """The tokenizer of one model. Special tokens are looked up by their string."""

    def __init__(self, tokenizer: Tokenizer, card: Card, kept: Path | None = None) -> None:
        """``kept``: a folder for results that take long to compute, for the next start."""
        self._tokenizer = tokenizer
        self._kept = kept / "vocabulary.json" if kept else None
        self._card = card
        tokenizer.no_truncation()
        tokenizer.no_padding()
        named = _named_specials(card)
        added = tokenizer.get_added_tokens_decoder().values()
        markers = {t.content for t in added if t.special or _MARKER.match(t.content)} | set(named)
        ids = (tokenizer.token_to_id(marker) for marker in markers)
        self.marker_ids = frozenset(token_id for token_id in ids if token_id is not None)
        self._special_text = re.compile(
            "|".join(re.escape(m) for m in sorted(markers, key=len, reverse=True))
        )
        self.specials: dict[str, int] = {text: self.special(text) for text in named}
        self._anchor_ids = self._raw_ids(card.tokenizer.anchor)
        self._encoded = functools.lru_cache(KEPT_TEXTS)(self._encode)  # a request is looked at more than once

    @functools.cached_property
    def largest_id(self) -> int:
        return self.by_text.largest_id if self._kept else max(self.ids_by_text().values())

    @functools.cached_property
    def by_text(self) -> TokensByText:
        """All tokens that have a text, ordered by it; read from ``kept`` where they are there."""
        key = f"{self._card.tokenizer.anchor} {sorted(self.marker_ids)}"
        known = read_kept(self._kept) if self._kept else {}
        with contextlib.suppress(KeyError, TypeError, ValueError):
            if known["key"] == key:
                return TokensByText(list(known["texts"]), list(known["ids"]), int(known["largest_id"]))
        found = self._by_text()
        if self._kept:
            write_kept(self._kept, {"key": key} | found._asdict())
        return found

    def _by_text(self) -> TokensByText:
        pairs = sorted((text, token) for token, text in enumerate(self.texts()) if text)
        largest = max(self.ids_by_text().values())
        return TokensByText([text for text, _ in pairs], [token for _, token in pairs], largest)

    def ids_by_text(self) -> dict[str, int]:
        """Every token with its id."""
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return vocabulary

    def texts(self) -> list[str]:
        """The text of every id; empty where it has none: special tokens, and ids that no token has."""
        anchor = self._anchor_ids
        ids = range(max(self.ids_by_text().values()) + 1)
        texts = self._tokenizer.decode_batch([[*anchor, i] for i in ids], skip_special_tokens=False)
        cut = len(self._card.tokenizer.anchor) if anchor else 0
        return ["" if i in self.marker_ids else text[cut:] for i, text in zip(ids, texts, strict=True)]

    def special(self, text: str) -> int:
        """The id of a special token. Raises ``LoadError`` that names it when it is not one known id."""
        token_id = self._tokenizer.token_to_id(text)
        if token_id is None:
            raise LoadError(
                f"{self._card.name}: the tokenizer has no token {text!r}: wrong tokenizer files, or a wrong"
                " card"
            )
        return int(token_id)

    def specials_of(self, texts: Iterable[str]) -> list[int]:
        return [self.special(text) for text in texts]

    def encode(self, text: str) -> list[int]:
        """Ids of user text. Where it spells a special token, it is cut inside the spelling."""
        return list(self._encoded(text))

    def encode_trusted(self, text: str) -> list[int]:
        """Ids of a card's own text: what it spells of special tokens becomes these."""
        return self._anchored_ids(text)

    def _encode(self, text: str) -> tuple[int, ...]:
        text = _SURROGATE.sub("\ufffd", text)
        cuts = [match.start() + 1 for match in self._special_text.finditer(text)]
        pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        return tuple(token_id for piece in pieces if piece for token_id in self._anchored_ids(piece))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; bytes that are not yet a character come out as U+FFFD."""
        anchor = self._anchor_ids
        text: str = self._tokenizer.decode([*anchor, *ids], skip_special_tokens=False)
        return text[len(self._card.tokenizer.anchor) :] if anchor else text

    def _anchored_ids(self, text: str) -> list[int]:
        return self._raw_ids(self._card.tokenizer.anchor + text)[len(self._anchor_ids) :]

    def _raw_ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def read_tokenizer(folder: Path, card: Card) -> Tokenizer:
    """The tokenizer files of a checkpoint. Raises ``LoadError``."""
    try:
        tokenizer = _read_tokenizer(folder)
    except BaseException as error:  # a hostile file makes the Rust side panic, which is not an Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise LoadError(
            f"{card.name}: tokenizer files in {folder} cannot be read ({type(error).__name__}); get the model"
            " again"
        ) from None
    known = tokenizer.get_vocab(with_added_tokens=True)
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True) for text in card.tokenizer.add if text not in known]
    )
    return tokenizer


def _read_tokenizer(folder: Path) -> Tokenizer:
    if (folder / "tokenizer.json").is_file():
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    if (folder / "vocab.json").is_file():  # the Dream family ships the slow files of Qwen2's tokenizer
        from transformers import Qwen2Tokenizer  # noqa: PLC0415 - slow to import, seldom needed

        slow: Any = Qwen2Tokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    else:
        from transformers import AutoTokenizer  # noqa: PLC0415

        slow = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    backend: Tokenizer = slow.backend_tokenizer
    return backend


def _named_specials(card: Card) -> list[str]:
    """Every special token that the card names, once."""
    texts: list[str | None] = []
    if fim := card.fim:
        texts += fim.tokens
    if canvas := card.canvas:
        texts += [
            canvas.mask,
            canvas.start,
            canvas.after_suffix,
            canvas.end,
            canvas.expand,
            canvas.delete,
            *canvas.forbidden,
        ]
    return list(dict.fromkeys(text for text in texts if text))
