"""FIM prompts: the order of suffix, prefix and markers that a model expects, and how much of the text fits.

Cuts are anchored: while someone types, the start of the prompt stays where it is, so that the KV cache stays
valid; it moves in steps of a quarter of what fits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fimserver.cards import Card, Fim
from fimserver.engine.prompts.healing import TokenHealing
from fimserver.engine.prompts.vocabulary import Vocabulary
from fimserver.errors import CardError
from fimserver.types import PromptUse, Request, unix_lines

CHARS_PER_TOKEN = 8  # above what code has on average; bounds how much text is tokenised
SNIPPETS_SHARE = 0.25  # of the prompt, at most
TYPED_SHARE = 8  # one part in so many is kept free for what is typed after the middle token
FEW_CHARS = 200  # of text: the name of the file says more about it
ROUNDING = 32  # lengths are rounded to one part in so many of the prompt


@dataclass(frozen=True)
class PromptTokens:
    """Token ids around the cursor, within the budget of the prompt."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    header: tuple[int, ...] = ()  # repository, other files and file, where the family has tokens for them
    typed: tuple[int, ...] = ()  # the end of the prefix, where the layout puts it after the middle token
    snippets: int = 0  # of other files, in the header
    held: str = ""  # end of the prefix that is in no id here: the first token of the middle begins with it


def cut_context(
    request: Request,
    card: Card,
    vocabulary: Vocabulary,
    markers: int = 8,
    tokens: int = 0,
    healing: TokenHealing | None = None,
) -> PromptTokens:
    """The end of the prefix and start of the suffix that fit into ``tokens`` less ``markers``.

    ``tokens`` 0: the card's ``prompt_tokens``. What is left for prefix and suffix is rounded down, so that a
    typed letter or a longer header moves neither cut.
    """
    tokens = tokens or card.prompt_tokens
    step = max(1, tokens // ROUNDING)
    header = file_header(request, card, vocabulary, tokens)
    prefix, typed, held = _split_typed(request, card, tokens, healing)
    typed_ids = vocabulary.encode(unix_lines(typed))
    kept_free = tokens // TYPED_SHARE if card.fim is not None and card.fim.typed_after_middle else 0
    taken = _stepped(len(header), step) + kept_free + _stepped(len(typed_ids) - kept_free, step)
    room = max(0, tokens - markers - taken)
    suffix_room = int(room * card.suffix_share)
    suffix = unix_lines(request.suffix[: suffix_room * CHARS_PER_TOKEN])
    suffix_ids = vocabulary.encode(suffix)[:suffix_room]
    prefix_room = room - min(suffix_room, _stepped(len(suffix_ids), step))
    prefix_ids = vocabulary.encode(unix_lines(anchored_tail(prefix, prefix_room * CHARS_PER_TOKEN)))
    over = len(prefix_ids) - prefix_room
    kept = prefix_ids[_stepped(over, prefix_room // 4) :]
    file = vocabulary.special(card.fim.file) if card.fim and card.fim.file else None
    snippets = header.count(file) - bool(request.path) if header and file is not None else 0
    return PromptTokens(tuple(kept), tuple(suffix_ids), tuple(header), tuple(typed_ids), snippets, held)


def _split_typed(
    request: Request, card: Card, tokens: int, healing: TokenHealing | None
) -> tuple[str, str, str]:
    """Split the prefix: what stays, what goes after the middle token, and what the middle begins with.

    What was typed since the anchor goes after the middle token (EFIM: keeps the cache valid); a longer one is
    cut at steps from its start, so that the cut stays where it is from key to key. With healing the token at
    the anchor goes there too, for the same reason.
    """
    whole = request.prefix
    allowed = card.fim is not None and card.fim.typed_after_middle
    typed_chars = min(request.typed_chars, len(whole)) % max(1, tokens // 4) if allowed else 0
    cut = len(whole) - typed_chars
    held = healing.held_back(whole) if healing else ""
    end = len(whole) - len(held)
    if healing and typed_chars:
        cut -= len(healing.held_back(whole[:cut]))
    cut = min(cut, end)
    return whole[:cut], whole[cut:end], held


def prompt_use(
    request: Request, context: PromptTokens, vocabulary: Vocabulary, prompt_tokens: int, limit: int
) -> PromptUse:
    """Which parts of a request are in its prompt of ``prompt_tokens``, and how much was left out."""
    above = _lines(request.prefix) - _lines(vocabulary.decode([*context.prefix, *context.typed]))
    below = _lines(request.suffix) - _lines(vocabulary.decode(context.suffix))
    snippets = len(request.snippets) - context.snippets
    return PromptUse(prompt_tokens, limit, max(0, above), max(0, below), snippets)


def _lines(text: str) -> int:
    """Line ends in a text."""
    return unix_lines(text).count("\n")


def file_header(request: Request, card: Card, vocabulary: Vocabulary, tokens: int) -> list[int]:
    """Repository, snippets and file name, each after its token.

    Families with both tokens never saw a file without repository. Where there is hardly any text, the name of
    the file says which language it is in.
    """
    fim = card.fim
    header: list[int] = []
    is_short = len(request.prefix.strip()) + len(request.suffix.strip()) < FEW_CHARS
    if fim and fim.repo and (request.repo or request.snippets or (request.path and is_short)):
        header += [
            vocabulary.special(fim.repo),
            *vocabulary.encode((request.repo or "workspace")[:200] + "\n"),
        ]
    if fim and fim.file:
        header += _snippets(request, vocabulary, vocabulary.special(fim.file), int(tokens * SNIPPETS_SHARE))
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

    A cached canvas follows the whole FIM prompt, one of blocks the card's ``context``: neither has anything
    to its right.
    """
    if card.canvas is None:
        raise CardError(f"{card.name} has no [canvas]: use it on the ar route")
    if card.canvas.attention == "cached":
        if card.fim is None:
            raise CardError(f"{card.name}: a cached canvas needs [fim] for its context")
        return fim_prompt(context, card.fim, vocabulary), []
    if card.canvas.attention == "block":
        return block_prompt(context, card.canvas.context, vocabulary), []
    left = vocabulary.specials_of([card.canvas.start] if card.canvas.start else [])
    right = vocabulary.specials_of([card.canvas.after_suffix] if card.canvas.after_suffix else [])
    return [*left, *context.prefix], [*context.suffix, *right]


def block_prompt(context: PromptTokens, template: str, vocabulary: Vocabulary) -> list[int]:
    """Prompt ids in the order of ``template``, whose own text may spell special tokens."""
    sides = {"{prefix}": context.prefix, "{suffix}": context.suffix}
    pieces = [
        sides[piece] if piece in sides else vocabulary.encode_trusted(piece)
        for piece in template_pieces(template)
    ]
    return [token for piece in pieces for token in piece]


def template_pieces(template: str) -> list[str]:
    """The parts of a card's ``context``: text, ``{prefix}`` and ``{suffix}``."""
    return [piece for piece in re.split(r"(\{prefix\}|\{suffix\})", template) if piece]


def _stepped(over: int, step: int) -> int:
    """``over`` rounded up to a multiple of ``step``; 0 when nothing is over."""
    return 0 if over <= 0 else -(-over // max(1, step)) * max(1, step)
