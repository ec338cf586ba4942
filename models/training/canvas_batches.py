"""Batches of canvases over packed texts: drawn, run and scored by tensor operations alone, for a GPU.

A batch has the same canvases (sizes and order) for every text, at places drawn anew. Rows that have nothing
to predict weigh nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from models.training.canvas_data import FIRST_DRAFT, MASK_RATIOS
from models.training.canvas_model import Adapter, Coder
from models.training.packed import Texts

WIDTH = 16  # padded lengths are multiples of it: fused attention wants aligned masks
PADDING = 0


class TextBatch(NamedTuple):
    """Texts ``ids`` (B, T) padded on the right; ``length``, ``prompt`` and ``prefix_at`` (B,)."""

    ids: torch.Tensor
    length: torch.Tensor
    prompt: torch.Tensor
    prefix_at: torch.Tensor

    def to(self, device: torch.device | str) -> TextBatch:
        return TextBatch(*(t.to(device, non_blocking=True) for t in self))


class Read(NamedTuple):
    """What the frozen coder makes of a batch.

    Keys and values (layers, 2, B, kv heads, T, D), last hidden states (B, T, d), and ``own`` (B, T): the
    token that it would write after each place.
    """

    kv: torch.Tensor
    hidden: torch.Tensor
    own: torch.Tensor

    def expected(self, ids: torch.Tensor) -> torch.Tensor:
        """For each token (B, T), whether the coder would have written it."""
        return F.pad(self.own[:, :-1] == ids[:, 1:], (1, 0))


@dataclass(frozen=True)
class Pattern:
    """Canvases of every text: counts by size of drafts (all masks), and of infills (random masks)."""

    drafts: Sequence[tuple[int, int]] = ((4, 72), (2, 24), (1, 24), (8, 4))  # size, count
    infills: Sequence[tuple[int, int]] = ((8, 4), (16, 3))

    def sizes(self) -> tuple[int, ...]:
        return tuple(size for size, count in (*self.drafts, *self.infills) for _ in range(count))

    @property
    def draft_count(self) -> int:
        return sum(count for _, count in self.drafts)


class CanvasBatch(NamedTuple):
    """R rows of canvases for each of B texts.

    ``ids`` (-1: mask), ``places`` in the text, ``previous`` (token at a row's own place), ``target`` (token
    after it), ``open`` (whether it is predicted), ``leading`` (nothing after the row's text is shown),
    ``expected`` (the coder would have written all that the row does not see of the text before its target):
    (B, R). ``rank`` (R,): number of the row in its canvas. ``mask`` (B, R, T + R): where a row may look.
    """

    ids: torch.Tensor
    places: torch.Tensor
    previous: torch.Tensor
    target: torch.Tensor
    open: torch.Tensor
    leading: torch.Tensor
    expected: torch.Tensor
    rank: torch.Tensor
    mask: torch.Tensor


def in_batches(texts: Texts, rows: int, seed: int) -> list[list[int]]:
    """Numbers of texts, ``rows`` of about the same length in each batch, in random order."""
    lengths = texts.starts.diff()
    generator = torch.Generator().manual_seed(seed)
    order = (lengths + torch.rand(len(lengths), generator=generator)).argsort().tolist()
    batches = [order[i : i + rows] for i in range(0, len(order) - rows + 1, rows)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def collate(texts: Texts, numbers: Sequence[int]) -> TextBatch:
    """The texts of some ``numbers``, padded."""
    chosen = torch.tensor(numbers)
    starts, lengths = texts.starts[chosen], texts.starts[chosen + 1] - texts.starts[chosen]
    width = -(-int(lengths.max()) // WIDTH) * WIDTH
    at = torch.arange(width)
    inside = at < lengths[:, None]
    ids = texts.ids[(starts[:, None] + at).clamp(max=len(texts.ids) - 1)].masked_fill(~inside, PADDING)
    return TextBatch(ids, lengths, texts.prompt[chosen], texts.prefix_at[chosen])


@torch.no_grad()
def read(coder: Coder, batch: TextBatch) -> Read:
    """One causal pass of the frozen coder over whole texts."""
    size, width = batch.ids.shape
    positions = torch.arange(width, device=batch.ids.device).repeat(size)
    stored: list[torch.Tensor] = []

    def attend(_index: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        queries, keys, values = (_by_head(t, size) for t in (q, k, v))
        stored.append(torch.stack([keys, values]))
        keys, values = _for_queries(coder, keys, values)
        return _by_row(F.scaled_dot_product_attention(queries, keys, values, is_causal=True))

    hidden = coder.run(coder.embedding[batch.ids.flatten()], positions, attend, coder.frozen)
    own = F.linear(hidden, coder.head).argmax(-1)
    return Read(torch.stack(stored), hidden.view(size, width, -1), own.view(size, width))


def draw(batch: TextBatch, seen: Read, pattern: Pattern) -> CanvasBatch:
    """Canvases at random places: drafts where the coder agrees with the text, infills in the middle."""
    device = batch.ids.device
    sizes = torch.tensor(pattern.sizes(), device=device)
    owner = torch.arange(len(sizes), device=device).repeat_interleave(sizes, output_size=sum(pattern.sizes()))
    rank = torch.arange(len(owner), device=device) - (sizes.cumsum(0) - sizes)[owner]
    as_own = seen.expected(batch.ids)
    starts = _starts(batch, as_own, pattern)
    places = starts[:, owner] + rank
    shown = _shown(places, batch, pattern, owner, rank)
    inside = batch.ids.shape[1] - 1
    previous = batch.ids.gather(1, places.clamp(max=inside))
    target = batch.ids.gather(1, (places + 1).clamp(max=inside))
    last = F.pad(owner[1:] != owner[:-1], (0, 1), value=True)
    next_shown = F.pad(shown[:, 1:], (0, 1)) & ~last
    unexpected = F.pad((~as_own).cumsum(1), (1, 0))  # number of such tokens before each place
    between = unexpected.gather(1, (places + 1).clamp(max=inside)) - unexpected.gather(1, starts)[:, owner]
    any_shown = torch.zeros(starts.shape, device=device).index_add(1, owner, shown.float()) > 0
    text = torch.arange(batch.ids.shape[1], device=device) < starts[:, owner, None]
    together = (owner[:, None] == owner).expand(len(text), -1, -1)
    return CanvasBatch(
        torch.where(shown, previous, -1),
        places,
        previous,
        target,
        (places + 1 < batch.length[:, None]) & ~next_shown,
        ~any_shown[:, owner],
        between == 0,
        rank,
        torch.cat([text, together], -1),
    )


def _starts(batch: TextBatch, as_own: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """First places (B, canvases): each once where a text has enough of them."""
    at = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    last = (batch.length - 2)[:, None]
    first = (batch.prefix_at + FIRST_DRAFT)[:, None]
    drafted = as_own & (at >= torch.minimum(first, last)) & (at <= last)
    scores = torch.rand(drafted.shape, device=at.device) + drafted
    scores = scores.masked_fill(at > last, -1.0)
    drafts = scores.topk(min(pattern.draft_count, scores.shape[1]), dim=1).indices
    drafts = drafts.clamp(max=last)[:, torch.randperm(drafts.shape[1], device=at.device)]
    if drafts.shape[1] < pattern.draft_count:  # a short text: some places twice
        drafts = drafts.repeat(1, -(-pattern.draft_count // drafts.shape[1]))[:, : pattern.draft_count]
    count = len(pattern.sizes()) - pattern.draft_count
    room = (batch.length - 1 - batch.prompt).clamp(min=1)[:, None]
    infills = (
        batch.prompt[:, None] + (torch.rand(len(room), count, device=at.device) * room).long()
    ).minimum(last)
    return torch.cat([drafts, infills], 1)


def _shown(
    places: torch.Tensor, batch: TextBatch, pattern: Pattern, owner: torch.Tensor, rank: torch.Tensor
) -> torch.Tensor:
    """Rows (B, R) of infills that show their token: not the first of a canvas, nor the text's last."""
    low, high = MASK_RATIOS
    ratio = low + (high - low) * torch.rand(len(places), len(pattern.sizes()), device=places.device)
    known = torch.rand(places.shape, device=places.device) >= ratio[:, owner]
    return known & (owner >= pattern.draft_count) & (rank > 0) & (places + 1 < batch.length[:, None])


def denoise(coder: Coder, adapter: Adapter, seen: Read, canvases: CanvasBatch) -> torch.Tensor:
    """Last hidden states (B * R, d) of all rows."""
    branch = adapter.cast(coder.dtype)
    size, ids = len(canvases.ids), canvases.ids.flatten()
    bias = torch.zeros(canvases.mask.shape, dtype=coder.dtype, device=ids.device)
    bias = bias.masked_fill_(~canvases.mask, -torch.inf)[:, None]
    x = torch.where((ids < 0)[:, None], adapter.mask.to(coder.dtype), coder.embedding[ids.clamp(min=0)])

    def attend(index: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        queries, keys, values = (_by_head(t, size) for t in (q, k, v))
        keys, values = (
            torch.cat([text, t], 2) for text, t in zip(seen.kv[index], (keys, values), strict=True)
        )
        keys, values = _for_queries(coder, keys, values)
        return _by_row(F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias))

    def product(index: int, name: str, rows: torch.Tensor) -> torch.Tensor:
        pair = branch(index, name)
        base = coder.frozen(index, name, rows)
        return base if pair is None else torch.addmm(base, rows @ pair[0].T, pair[1].T)

    return coder.run(x, canvases.places.flatten(), attend, product)


@dataclass(frozen=True)
class Weights:
    """Weights of rows: ``place`` a further place of a draft, ``foreign`` after tokens of another author."""

    place: float = 0.85
    foreign: float = 0.05
    infill: float = 0.5


def losses(
    coder: Coder, adapter: Adapter, seen: Read, canvases: CanvasBatch, weights: Weights
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Weighted mean loss of all open rows, with and without the sampler, and measures of the drafts."""
    hidden = denoise(coder, adapter, seen, canvases)
    informed = adapter.after(hidden, coder.embedding[canvases.previous.flatten()])
    at = canvases.places.clamp(max=seen.own.shape[1] - 1)
    with torch.no_grad():
        width = seen.hidden.shape[-1]
        taught = seen.hidden.gather(1, at[..., None].expand(-1, -1, width)).flatten(0, 1)
        law = coder.logits(taught).log_softmax(-1)
        teacher = law.exp()
        entropy = (teacher * law).sum(-1)
        weight = _row_weights(canvases, weights).flatten()
    leading, target = canvases.leading.flatten(), canvases.target.flatten()
    loss = hidden.new_zeros((), dtype=torch.float32)
    measures: dict[str, torch.Tensor] = {}
    for name, rows in {"": hidden, "informed_": informed}.items():
        logits = coder.logits(rows)
        logq = logits.log_softmax(-1)
        divergence = entropy - (teacher * logq).sum(-1)
        text = -logq.gather(1, target[:, None])[:, 0]
        loss = loss + (torch.where(leading, divergence, text) * weight).sum()
        agrees = logits.detach().argmax(-1) == seen.own.gather(1, at).flatten()
        measures |= {f"{name}kl": _mean(divergence.detach(), _asked(canvases).flatten())}
        measures |= _by_place(name, agrees.view_as(canvases.leading), canvases)
    return loss, measures


def _asked(canvases: CanvasBatch) -> torch.Tensor:
    """Rows of drafts that a verifier can reach."""
    return canvases.leading & canvases.expected & canvases.open


def _row_weights(canvases: CanvasBatch, weights: Weights) -> torch.Tensor:
    drafted = weights.place**canvases.rank * torch.where(canvases.expected, 1.0, weights.foreign)
    weight = torch.where(canvases.leading, drafted, weights.infill) * canvases.open
    return weight / weight.sum()


def _by_place(name: str, agrees: torch.Tensor, canvases: CanvasBatch) -> dict[str, torch.Tensor]:
    """Share of drafted tokens that are the coder's own, by place, if those before it are."""
    asked = _asked(canvases)
    return {f"{name}at_{i}": _mean(agrees.float(), asked & (canvases.rank == i)) for i in range(4)}


def _mean(values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


def _by_head(rows: torch.Tensor, size: int) -> torch.Tensor:
    """Rows (B * M, heads, D) as (B, heads, M, D)."""
    return rows.view(size, -1, *rows.shape[1:]).transpose(1, 2)


def _by_row(out: torch.Tensor) -> torch.Tensor:
    """Attention's output (B, heads, M, D) as rows (B * M, heads * D)."""
    return out.transpose(1, 2).flatten(0, 1).flatten(1)


def _for_queries(coder: Coder, *kv: torch.Tensor) -> tuple[Any, ...]:
    """Keys and values repeated for the query heads that share them."""
    return tuple(t.repeat_interleave(coder.heads // coder.kv_heads, dim=1) for t in kv)
