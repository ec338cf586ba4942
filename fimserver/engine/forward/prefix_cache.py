"""Prefix cache: prefills a prompt into a KV buffer, starting where it differs from the cached tokens.

There is one ``PrefixCache`` per network, shared by the routes that have the same prompt. Prefill runs in
chunks aligned to absolute positions, from the chunk with the first different token on; if the bits allow it,
from that token on. The cache keeps several prompts (``cached_prompts.py``); passes use the current one.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

from fimserver.engine.device import Pace, to_device
from fimserver.engine.forward.cached_prompts import CachedPrompts
from fimserver.engine.forward.kv import KVBuffer, make_buffers
from fimserver.engine.forward.network import Network
from fimserver.engine.forward.passes import Pass, finish
from fimserver.lengths import common_prefix
from fimserver.types import Deadline, Prefill

CHUNKS = 2  # most chunks in one pass, as other requests wait for it
BLOCK = 512  # keys in a block of torch's attention on a CPU


class Beyond(NamedTuple):
    """Tokens after a prompt that attend to it and to each other, in rows that would pad its last chunk."""

    ids: tuple[int, ...]
    network: Network  # runs the last chunk, on the cache's keys and values


class PrefixCache:
    """KV buffers and the prompts in them; makes the passes that fill and read them."""

    def __init__(
        self,
        network: Network,
        capacity: int,
        chunk: int,
        branches: int = 1,
        block: int = 1,
        prompts: int = 1,
        *,
        splits: bool = False,
    ) -> None:
        """``block``: tokens of a block see each other; 1 is causal. ``chunk``: a multiple of it.

        ``prompts``: most prompts kept. ``splits``: passes need not run whole chunks (``chunks_split``).
        """
        self.network = network
        self.chunk = chunk
        self.splits = splits
        self.capacity = -(-capacity // chunk) * chunk
        pooled = getattr(network, "static", None) is not None
        self.prompts = CachedPrompts(make_buffers(self.capacity, branches, prompts, pooled=pooled), prompts)
        self.pace = Pace.of(network.device)
        self._everything = torch.ones(self.capacity, self.capacity, dtype=torch.bool, device=network.device)
        numbers = torch.arange(self.capacity, device=network.device) // block
        self._causal = numbers[:, None] >= numbers
        self._everywhere = torch.arange(self.capacity, device=network.device)
        self._no_rows = self._everywhere[:0]

    @property
    def kv(self) -> KVBuffer:
        """Keys and values of the current prompt."""
        return self.prompts.current.kv

    @property
    def forwards(self) -> int:
        """Passes made so far, for all prompts."""
        return self.prompts.forwards

    @property
    def prefilled(self) -> Prefill:
        """Rows and passes of the last prefill of the current prompt, without its time."""
        return self.prompts.current.prefilled

    @property
    def longest_pass(self) -> int:
        """Number of rows in the longest pass of a prefill."""
        return self.chunk * (CHUNKS if self.splits else 1)

    def clear(self) -> None:
        """Forget all prompts."""
        self.prompts.clear()

    @torch.inference_mode()
    def wipe(self) -> None:
        """Forget all prompts and zero the current buffer, whose rows may hold NaN, also the masked ones."""
        self.clear()
        self.kv.wipe()

    @torch.inference_mode()
    def prefill(self, ids: Sequence[int], deadline: Deadline, *, want_logits: bool) -> torch.Tensor | None:
        """Prefill a prompt.

        Returns logits (V,) of its last row, empty if not wanted; ``None`` if the deadline passed.
        """
        return finish(self.prefilling(ids, deadline, want_logits=want_logits))

    def prefilling(
        self, ids: Sequence[int], deadline: Deadline, *, want_logits: bool, beyond: Beyond | None = None
    ) -> Generator[Pass, None, torch.Tensor | None]:
        """Yield the passes of a prefill; returns what ``prefill`` does.

        With ``beyond``: logits (1 + n, V), those of its n rows included, or (1, V) if they had no room.
        """
        kept = self.prompts.current
        logits = torch.empty(0)
        pieces = self._pieces(ids, kept.ids, want_logits=want_logits)
        kept.prefilled = Prefill(sum(map(len, pieces)), len(pieces))
        for piece in pieces:
            if deadline.spent():
                return None
            kept.ids = kept.ids[: piece.start]  # holds even if the pass fails half way
            chunk = self._read(ids, piece, want_logits=want_logits, beyond=beyond)
            yield chunk
            if not chunk.done and deadline.spent():
                return None
            found = chunk.result()[0]
            logits = found[0] if len(found) and beyond is None else found
            kept.ids = list(ids[: min(piece.stop, len(ids))])
            self.pace.step()
        kept.ids = kept.ids[: len(ids)]  # rows after the prompt are overwritten from now on
        return logits

    def num_uncached_tokens(self, ids: Sequence[int]) -> int:
        """Return the number of rows that a prefill of ``ids`` with logits would run now."""
        return sum(map(len, self._pieces(ids, self.prompts.nearest(ids).ids, want_logits=True)))

    def _pieces(self, ids: Sequence[int], cached: Sequence[int], *, want_logits: bool) -> list[range]:
        """Return the rows to run for a prompt over ``cached`` tokens, by pass.

        They are whole chunks; or with ``splits``, the new rows, up to ``CHUNKS`` chunks in one pass.
        """
        first = min(common_prefix(ids, cached), len(ids) - int(want_logits))
        if first >= len(ids):
            return []
        if not self.splits:
            starts = range(first // self.chunk * self.chunk, len(ids), self.chunk)
            return [range(start, start + self.chunk) for start in starts]
        stops = [*range((first // self.chunk + CHUNKS) * self.chunk, len(ids), CHUNKS * self.chunk), len(ids)]
        return [range(*bounds) for bounds in pairwise([first, *stops])]

    @torch.inference_mode()
    def rows(
        self,
        ids: Sequence[int],
        start: int,
        mask: torch.Tensor,
        logits_of: torch.Tensor,
        network: Network | None = None,
    ) -> torch.Tensor:
        """Run one pass of rows after the prompt, which the next pass overwrites; logits (R, V).

        ``network``: one that reads the same keys and values; ``None``: that of the cache.
        """
        return self.rows_pass(ids, start, mask, logits_of, network).result()[0]

    @torch.inference_mode()
    def rows_pass(
        self,
        ids: Sequence[int],
        start: int,
        mask: torch.Tensor,
        logits_of: torch.Tensor,
        network: Network | None = None,
        positions: torch.Tensor | None = None,
    ) -> Pass:
        """Return the deferred pass of ``rows``, with logits (1, R, V).

        ``positions`` (M,): positions in the text, if they are not consecutive from ``start`` on.
        """
        return self._pass([ids], start, mask, logits_of, network or self.network, positions=positions)

    @torch.inference_mode()
    def branches(self, branches: Sequence[Sequence[int]], start: int) -> torch.Tensor:
        """Run B causal continuations of M tokens each in one pass; logits (B, M, V)."""
        return self.branches_pass(branches, start).result()

    @torch.inference_mode()
    def branches_pass(self, branches: Sequence[Sequence[int]], start: int) -> Pass:
        """Return the deferred pass of ``branches``."""
        if len(branches) > 1:
            self.kv.broadcast_to_branches(start)
        rows = len(branches[0])
        return self._pass(branches, start, self.causal(start, rows), self._everywhere[:rows], self.network)

    def _pass(
        self,
        branches: Sequence[Sequence[int]],
        start: int,
        mask: torch.Tensor,
        logits_of: torch.Tensor,
        network: Network,
        *,
        positions: torch.Tensor | None = None,
        reads_prompt: bool = False,
        chunk: int = 0,
    ) -> Pass:
        self.prompts.current.forwards += 1
        return Pass(
            network,
            self.kv,
            to_device(branches, network.device),
            start,
            mask,
            logits_of,
            positions=positions,
            reads_prompt=reads_prompt,
            chunk=chunk,
        )

    def causal(self, start: int, count: int) -> torch.Tensor:
        """Return a mask (count, extent) for rows at ``start``: each sees the rows before it and its block.

        Extents are whole blocks of the attention kernel, so that a row's bits do not depend on later rows.
        """
        extent = min(-(-(start + count) // BLOCK) * BLOCK, self.capacity)
        return self._causal[start : start + count, :extent]

    def block(self, start: int, count: int) -> torch.Tensor:
        """Return a mask (count, start + count) for a canvas at ``start``, which sees the text and itself."""
        return self._everything[:count, : start + count]

    def _read(
        self, ids: Sequence[int], piece: range, *, want_logits: bool, beyond: Beyond | None = None
    ) -> Pass:
        """Return the pass over ``piece`` of a prompt, padded with token 0, which no row of the prompt sees.

        ``beyond`` follows the prompt in the last pass if its chunk has room.
        """
        count = min(piece.stop, len(ids)) - piece.start
        rows = list(ids[piece.start : piece.start + count])
        is_last = want_logits and piece.stop >= len(ids)
        extent = -(-piece.stop // self.chunk) * self.chunk
        network = self.network
        added = 0
        if beyond and is_last:
            network = beyond.network
            added = len(beyond.ids) if len(ids) + len(beyond.ids) <= extent else 0
            rows += beyond.ids[:added]
        rows += [0] * (len(piece) - len(rows))
        mask = self.causal(piece.start, len(rows))[:, :extent]
        if added:
            mask = mask.clone()
            mask[count : count + added, len(ids) : len(ids) + added] = True
        wanted = self._everywhere[count - 1 : count + added] if is_last else self._no_rows
        chunk = self.chunk if self.splits else 0
        return self._pass([rows], piece.start, mask, wanted, network, reads_prompt=True, chunk=chunk)
