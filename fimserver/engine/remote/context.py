"""Context of a remote prompt: prefix, suffix and snippets as text, cut by an estimate of their tokens."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from fimserver.cards import Card, Fim
from fimserver.engine.prompts.prompt import SNIPPETS_SHARE, anchored_tail
from fimserver.types import Request, Snippet, unix_lines

SAFE_BYTES = 2.0  # per token, before the server has counted any; code has three to four
MARGIN = 0.9
SEEN = 8  # prompts that the rate is estimated from
MIDDLE_TOKENS = 16  # of the prompt, for markers and names


class TextContext(NamedTuple):
    """Text around the cursor that fits the prompt, with line feeds as line ends."""

    prefix: str
    suffix: str
    snippets: tuple[Snippet, ...] = ()
    path: str = ""
    repo: str = ""

    @property
    def text(self) -> str:
        """All text, in the order in which servers have it in their prefix caches."""
        files = "".join(f"{snippet.path}\n{snippet.text}\n" for snippet in self.snippets)
        return f"{files}{self.path}\n{self.suffix}\0{self.prefix}"


class TokenRate:
    """Estimate of bytes per token of a server's model; a safe guess until the server has counted."""

    def __init__(self) -> None:
        self._seen: deque[float] = deque(maxlen=SEEN)

    @property
    def bytes_per_token(self) -> float:
        return MARGIN * min(self._seen) if self._seen else SAFE_BYTES

    @property
    def known(self) -> bool:
        """Whether the server has counted anything."""
        return bool(self._seen)

    def learn(self, text: str, tokens: int) -> None:
        """Update the estimate by a prompt and the server's count; short prompts are mostly markers."""
        if tokens > 2 * MIDDLE_TOKENS:
            self._seen.append(min(8.0, max(0.5, len(text.encode("utf-8", "replace")) / tokens)))

    def shrink(self) -> None:
        """Halve the estimate, after the server refused a prompt as too long."""
        self._seen = deque([self.bytes_per_token / MARGIN / 2], SEEN)

    def tokens(self, text: str) -> int:
        return int(len(text.encode("utf-8", "replace")) / self.bytes_per_token) + 1


def cut_text(
    request: Request, card: Card, tokens: int, rate: TokenRate, markers: tuple[str, ...] = ()
) -> TextContext:
    """Cut the text of a request to ``tokens`` tokens.

    ``markers``: strings that a raw prompt must not contain, as the server would read them as special tokens;
    the context ends at them.
    """
    room = max(0, tokens - MIDDLE_TOKENS) * rate.bytes_per_token
    snippets = _snippets(request, room * SNIPPETS_SHARE, markers)
    room -= sum(_size(snippet.path + snippet.text) for snippet in snippets)
    around = request.prefix[-4096:] + request.suffix[:4096]
    chars = room * len(around) / max(1, _size(around))
    suffix = unix_lines(request.suffix[: int(chars * card.suffix_share)])
    prefix = anchored_tail(unix_lines(request.prefix), max(4, int(chars) - len(suffix)))
    return TextContext(
        _after(prefix, markers), _before(suffix, markers), snippets, request.path[-200:], request.repo[:200]
    )


def marker_texts(fim: Fim | None) -> tuple[str, ...]:
    """Return the special tokens of a card's FIM prompt."""
    return fim.tokens if fim else ()


def _snippets(request: Request, room: float, markers: tuple[str, ...]) -> tuple[Snippet, ...]:
    """Return whole snippets, in order, as far as they fit into ``room`` bytes."""
    kept: list[Snippet] = []
    for snippet in request.snippets:
        text = unix_lines(snippet.text)
        size = _size(snippet.path + text)
        if size <= room and not any(marker in text or marker in snippet.path for marker in markers):
            room -= size
            kept.append(Snippet(snippet.path[-200:], text))
    return tuple(kept)


def _after(text: str, markers: tuple[str, ...]) -> str:
    """Return the text after its last marker."""
    return text[max((text.rfind(m) + len(m) for m in markers if m in text), default=0) :]


def _before(text: str, markers: tuple[str, ...]) -> str:
    """Return the text before its first marker."""
    return text[: min((text.find(m) for m in markers if m in text), default=len(text))]


def _size(text: str) -> int:
    return len(text.encode("utf-8", "replace"))
