"""Memory of suggestions: typing through one, deleting back to it or accepting it by words needs no request.

It is keyed by route, document, prefix and suffix, and bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal, NamedTuple

from fimserver.reasons import Reason

MAX_ENTRIES = 256
MAX_CHARS = 2_000_000


class Key(NamedTuple):
    """Place of a suggestion."""

    uri: str
    route: str  # the requested one, may be ``auto``
    suffix: str
    prefix: str


class RememberedMiddle(NamedTuple):
    """A middle after post-processing."""

    text: str  # empty: there is none, for ``reason``
    reason: Reason
    route: Literal["", "dllm", "ar"] = ""  # that wrote it
    model: str = ""


class Memory:
    """Middles of recent places, the newest last."""

    def __init__(self) -> None:
        self._entries: OrderedDict[Key, tuple[RememberedMiddle, ...]] = OrderedDict()
        self._chars = 0

    def __len__(self) -> int:
        return len(self._entries)

    def remember(self, key: Key, middles: tuple[RememberedMiddle, ...]) -> None:
        """Keep the middles of a place, and drop the oldest places beyond the limits."""
        self._forget(key)
        self._entries[key] = middles
        self._chars += _size(key, middles)
        while len(self._entries) > MAX_ENTRIES or (self._chars > MAX_CHARS and len(self._entries) > 1):
            self._forget(next(iter(self._entries)))

    def recall(self, key: Key) -> tuple[RememberedMiddle, ...]:
        """Return the middles of a place, or the rests of middles that the user has typed into.

        Empty if nothing is known.
        """
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        for old in reversed(self._entries):
            typed = key.prefix[len(old.prefix) :]
            if typed and _same_place(old, key):
                left = tuple(
                    m._replace(text=m.text[len(typed) :])
                    for m in self._entries[old]
                    if _continues(m.text, typed)
                )
                if left:
                    return left
        return ()

    def forget(self, uri: str) -> None:
        """Drop the places of a document."""
        for key in [key for key in self._entries if key.uri == uri]:
            self._forget(key)

    def clear(self) -> None:
        self._entries.clear()
        self._chars = 0

    def _forget(self, key: Key) -> None:
        middles = self._entries.pop(key, None)
        if middles is not None:
            self._chars -= _size(key, middles)


def _same_place(old: Key, key: Key) -> bool:
    """Whether ``key`` is ``old`` with more text typed."""
    same = old.uri == key.uri and old.route == key.route and old.suffix == key.suffix
    return same and key.prefix.startswith(old.prefix)


def _continues(text: str, typed: str) -> bool:
    return len(text) > len(typed) and text.startswith(typed)


def _size(key: Key, middles: tuple[RememberedMiddle, ...]) -> int:
    return len(key.prefix) + len(key.suffix) + sum(len(middle.text) for middle in middles)
