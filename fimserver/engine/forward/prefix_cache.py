"""Prefix cache: brings a prompt into a KV buffer and runs only what differs from the cached tokens.

One ``PrefixCache`` per network, shared by the routes that have the same prompt: prefill runs in chunks
aligned to absolute positions, and only from the chunk in which the new prompt first differs from the one that
is there; where the bits allow it, from that token. It keeps several prompts (``cached_prompts.py``); passes
use the current one.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

from fimserver.engine.device import Pace, to_device
from fimserver.engine.forward.cached_prompts import CachedPrompts
from fimserver.engine.forward.kv import KVBuffer
from fimserver.engine.forward.network import Network
from fimserver.engine.forward.passes import Pass, finish
from fimserver.lengths import common_prefix
from fimserver.types import Deadline, Prefill

CHUNKS = 2  # of a prompt, in one pass at most: a request that goes on waits for no more
BLOCK = 512  # keys that torch's attention reads at a time on a CPU


class Beyond(NamedTuple):
    """Tokens after a prompt that see it and each other.

    They take rows that would only fill up its last chunk.
    """

    ids: tuple[int, ...]
    network: Network  # runs that chunk, on the cache's keys and values


class PrefixCache:
    """KV buffers, the prompt tokens in them, and the passes that were run."""

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
        """``block``: so many tokens at a time see each other; 1 is causal. ``chunk`` is a multiple of it.

        ``prompts``: so many are kept at most. ``splits``: passes need not run whole chunks
        (``chunks_split``).
        """
        self.network = network
        self.chunk = chunk
        self.splits = splits
        self.capacity = -(-capacity // chunk) * chunk
        self.prompts = CachedPrompts(lambda: KVBuffer(self.capacity, branches), prompts)
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
        """What the last prefill of the current prompt ran, without its time."""
        return self.prompts.current.prefilled

    @property
    def longest_pass(self) -> int:
        """Rows of a prefill's longest pass."""
        return self.chunk * (CHUNKS if self.splits else 1)

    def clear(self) -> None:
        """Forget all prompts."""
        self.prompts.clear()

    @torch.inference_mode()
    def wipe(self) -> None:
        """Forget the prompt and every row, also those that a mask hides: they may hold NaN."""
        self.clear()
        self.kv.wipe()

    @torch.inference_mode()
    def prefill(self, ids: Sequence[int], deadline: Deadline, *, want_logits: bool) -> torch.Tensor | None:
        """Bring the prompt in.

        Logits (V,) of its last row, empty if not wanted; ``None`` when the deadline passed.
        """
        return finish(self.prefilling(ids, deadline, want_logits=want_logits))

    def prefilling(
        self, ids: Sequence[int], deadline: Deadline, *, want_logits: bool, beyond: Beyond | None = None
    ) -> Generator[Pass, None, torch.Tensor | None]:
        """The passes of a prefill; returns what ``prefill`` does.

        With ``beyond``: logits (1 + n, V), those of its n rows too, or (1, V) where they had no room.
        """
        kept = self.prompts.current
        logits = torch.empty(0)
        pieces = self._pieces(ids, kept.ids, want_logits=want_logits)
        kept.prefilled = Prefill(sum(map(len, pieces)), len(pieces))
        for piece in pieces:
            if deadline.spent():
                return None
            kept.ids = kept.ids[: piece.start]  # true also when the pass fails half way
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
        """Rows that a prefill of ``ids`` with logits would run now."""
        return sum(map(len, self._pieces(ids, self.prompts.nearest(ids).ids, want_logits=True)))

    def _pieces(self, ids: Sequence[int], cached: Sequence[int], *, want_logits: bool) -> list[range]:
        """The rows that have to be run for a prompt where ``cached`` tokens are, by pass.

        Whole chunks, or where parts of them have the same bits: from the first row that is new to the last,
        up to ``CHUNKS`` chunks at once.
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
        """One forward pass of rows that do not belong to the prompt.

        They are overwritten by whatever comes next.

        ``network``: another one that reads the same keys and values; ``None``: the one that made them.
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
        """The pass of ``rows``, with logits (1, R, V).

        ``positions`` (M,): of the rows in the text, where they are not those from ``start`` on.
        """
        return self._pass([ids], start, mask, logits_of, network or self.network, positions=positions)

    @torch.inference_mode()
    def branches(self, branches: Sequence[Sequence[int]], start: int) -> torch.Tensor:
        """Logits (B, M, V) of B causal continuations of M tokens each, side by side in one pass."""
        return self.branches_pass(branches, start).result()

    @torch.inference_mode()
    def branches_pass(self, branches: Sequence[Sequence[int]], start: int) -> Pass:
        """The pass of ``branches``."""
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
        """Mask (count, extent) for rows at ``start``: each sees what is before it, itself, and its block.

        Extents are whole blocks of the attention kernel, so that a row's bits do not depend on the rows after
        it.
        """
        extent = min(-(-(start + count) // BLOCK) * BLOCK, self.capacity)
        return self._causal[start : start + count, :extent]

    def block(self, start: int, count: int) -> torch.Tensor:
        """Mask (count, start + count) for a canvas at ``start``.

        Each row sees all before it and the whole canvas.
        """
        return self._everything[:count, : start + count]

    def _read(
        self, ids: Sequence[int], piece: range, *, want_logits: bool, beyond: Beyond | None = None
    ) -> Pass:
        """The pass over ``piece`` of a prompt; whole chunks end with token 0, which nobody sees.

        ``beyond`` goes into the last one, after its prompt, if its chunk has room for it.
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
