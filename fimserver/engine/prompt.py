"""FIM prompts: the order of suffix, prefix and markers that a model expects, and how much of the text fits.

Cuts are anchored: while someone types, the start of the prompt stays where it is, so that the KV cache stays
valid; it moves in steps of a quarter of what fits.
"""

from __future__ import annotations

from dataclasses import dataclass

from fimserver.cards import Card, Fim
from fimserver.engine.vocabulary import Vocabulary
from fimserver.errors import CardError
from fimserver.types import Request, unix_lines

CHARS_PER_TOKEN = 8  # above what code has on average; bounds how much text is tokenised
SNIPPETS_SHARE = 0.25  # of the prompt, at most


@dataclass(frozen=True)
class PromptTokens:
    """Token ids around the cursor, within the card's ``prompt_tokens``."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    header: tuple[int, ...] = ()  # repository, other files and file, where the family has tokens for them
    typed: tuple[int, ...] = ()  # the end of the prefix, where the layout puts it after the middle token


def cut_context(request: Request, card: Card, vocabulary: Vocabulary, markers: int = 8) -> PromptTokens:
    """The end of the prefix and start of the suffix that fit ``card.prompt_tokens`` less ``markers``."""
    suffix = request.suffix
    header = file_header(request, card, vocabulary)
    prefix, typed = _split_typed(request, card)
    typed_ids = vocabulary.encode(unix_lines(typed))
    room = card.prompt_tokens - markers - len(header) - len(typed_ids)
    suffix_room = int(room * card.suffix_share)
    suffix_ids = vocabulary.encode(unix_lines(suffix[: suffix_room * CHARS_PER_TOKEN]))[:suffix_room]
    prefix_room = room - len(suffix_ids)
    prefix_ids = vocabulary.encode(unix_lines(anchored_tail(prefix, prefix_room * CHARS_PER_TOKEN)))
    over = len(prefix_ids) - prefix_room
    kept = prefix_ids[_stepped(over, prefix_room // 4) :]
    return PromptTokens(tuple(kept), tuple(suffix_ids), tuple(header), tuple(typed_ids))


def _split_typed(request: Request, card: Card) -> tuple[str, str]:
    """Split off the end of the prefix that goes after the middle token (EFIM: keeps the cache valid)."""
    allowed = card.fim is not None and card.fim.typed_after_middle
    typed_chars = min(request.typed_chars, len(request.prefix), card.prompt_tokens // 4) if allowed else 0
    cut = len(request.prefix) - typed_chars
    return request.prefix[:cut], request.prefix[cut:]


def file_header(request: Request, card: Card, vocabulary: Vocabulary) -> list[int]:
    """Repository, snippets and file name, each after its token.

    Families with both tokens never saw a file without repository.
    """
    fim = card.fim
    header: list[int] = []
    if fim and fim.repo and (request.repo or request.snippets):
        header += [
            vocabulary.special(fim.repo),
            *vocabulary.encode((request.repo or "workspace")[:200] + "\n"),
        ]
    if fim and fim.file:
        header += _snippets(
            request, vocabulary, vocabulary.special(fim.file), int(card.prompt_tokens * SNIPPETS_SHARE)
        )
        if request.path and (header or not fim.repo):
            header += [vocabulary.special(fim.file), *vocabulary.encode(request.path[-200:] + "\n")]
    return header


def _snippets(request: Request, vocabulary: Vocabulary, file_token: int, room: int) -> list[int]:
    """Whole snippets, in their order, as long as they fit."""
    ids: list[int] = []
    for snippet in request.snippets:
        text = f"{snippet.path[-200:]}\n{unix_lines(snippet.text)[: room * CHARS_PER_TOKEN]}\n"
        piece = [file_token, *vocabulary.encode(text)]
        if len(ids) + len(piece) <= room:
            ids += piece
    return ids


def anchored_tail(text: str, limit: int) -> str:
    """At most ``limit`` last characters, starting at a line start that moves in steps of ``limit // 4``."""
    start = _stepped(len(text) - limit, limit // 4)
    if start == 0:
        return text
    line_start = text.find("\n", start - 1, start + limit // 8) + 1
    return text[line_start or start :]


def fim_prompt(context: PromptTokens, fim: Fim, vocabulary: Vocabulary) -> list[int]:
    """Prompt ids of the ar route in the layout of the card (FIM, arXiv 2207.14255)."""
    start = [*vocabulary.specials_of(fim.start), *context.header]
    pre = vocabulary.special(fim.prefix)
    suf = vocabulary.special(fim.suffix)
    mid = [vocabulary.special(fim.middle)] if fim.middle else []
    match fim.layout:
        case "psm":
            return [*start, pre, *context.prefix, suf, *context.suffix, *mid, *context.typed]
        case "spm":
            return [*start, suf, *context.suffix, pre, *context.prefix, *mid]
        case "spm_tail":
            return [*start, pre, suf, *context.suffix, *mid, *context.prefix]


def canvas_context(context: PromptTokens, card: Card, vocabulary: Vocabulary) -> tuple[list[int], list[int]]:
    """Ids left and right of the canvas.

    A cached canvas follows the whole FIM prompt and has nothing to its right.
    """
    if card.canvas is None:
        raise CardError(f"{card.name} has no [canvas]: use it on the ar route")
    if card.canvas.attention == "cached":
        if card.fim is None:
            raise CardError(f"{card.name}: a cached canvas needs [fim] for its context")
        return fim_prompt(context, card.fim, vocabulary), []
    left = vocabulary.specials_of([card.canvas.start] if card.canvas.start else [])
    right = vocabulary.specials_of([card.canvas.after_suffix] if card.canvas.after_suffix else [])
    return [*left, *context.prefix], [*context.suffix, *right]


def _stepped(over: int, step: int) -> int:
    """``over`` rounded up to a multiple of ``step``; 0 when nothing is over."""
    return 0 if over <= 0 else -(-over // max(1, step)) * max(1, step)
