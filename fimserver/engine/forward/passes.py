"""Deferred forward passes, so that the passes of several requests can run as one.

A generator yields a pass before it needs the result. A caller that drives several generators may run their
passes together; a pass that has not been run by then runs when its result is read. Matrix products run over
the rows of all texts at once, attention over each text's own keys and values, so that every row has the same
bits as alone (``rows_alike`` checks that the network's products allow it).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Sequence
from typing import TypeVar

import torch

from fimserver.engine.forward.adapter import CanvasNetwork
from fimserver.engine.forward.fused import FusedModel
from fimserver.engine.forward.kv import KVBuffer, UnkeptKV
from fimserver.engine.forward.layers import Linear, Part
from fimserver.engine.forward.network import Network
from fimserver.engine.forward.static_pass import StaticPasses
from fimserver.types import Deadline

T = TypeVar("T")
TRIED_ROWS = (1, 2, 3, 4, 8, 13, 24, 40, 63, 64, 96, 129, 256)  # of the products that ``rows_alike`` compares


class Pass:
    """A deferred pass over ids (B, M) of one text, for logits (B, R, V) of rows ``logits_of`` (R,).

    ``start``: position of the first row. ``mask`` (M, extent) is true for the keys that a row attends to.
    ``company``: number of passes that ran as one. With ``UnkeptKV`` it runs a whole text with full attention.
    """

    def __init__(
        self,
        network: Network,
        kv: KVBuffer | UnkeptKV,
        ids: torch.Tensor,
        start: int,
        mask: torch.Tensor,
        logits_of: torch.Tensor,
        *,
        positions: torch.Tensor | None = None,
        reads_prompt: bool = False,
        chunk: int = 0,
    ) -> None:
        """``positions`` (M,): positions in the text, if they are not consecutive from ``start`` on.

        ``reads_prompt``: the pass is part of a prefill, so large that others should not wait for it.
        ``chunk``: rows attend in chunks of this size; 0: all at once.
        """
        self.network = network
        self.kv = kv
        self.ids = ids
        self.start = start
        self.mask = mask
        self.logits_of = logits_of
        self.positions = positions
        self.reads_prompt = reads_prompt
        self.chunk = chunk
        self.company = 1
        self._logits: torch.Tensor | None = None
        self._hidden = torch.empty(0)

    @property
    def joins(self) -> bool:
        """Whether the pass may run together with others."""
        own = _own_pass(self.network)
        if own is None:
            return False
        if own.static is not None:
            static = _static_of(self.network)
            return static is not None and isinstance(self.kv, KVBuffer) and static.joins(self.ids)
        return own.joins and self.ids.shape[1] <= own.capacity and self.ids.numel() <= TRIED_ROWS[-1]

    @property
    def done(self) -> bool:
        return self._logits is not None

    @torch.inference_mode()
    def result(self) -> torch.Tensor:
        """Return logits (B, R, V), after running the pass if need be; sets ``hidden`` of the network."""
        if self._logits is None:
            self._logits = self._run()
        elif len(self.logits_of):
            self.network.hidden = self._hidden
        return self._logits

    def _run(self) -> torch.Tensor:
        if isinstance(self.kv, UnkeptKV):
            return self._run_whole(self.kv)
        self.place()
        if self.positions is None:
            return self.network.forward(self.ids, self.mask, self.kv, self.logits_of)
        assert isinstance(self.network, CanvasNetwork)
        return self.network.forward_at(self.ids, self.positions, self.mask, self.kv, self.logits_of)

    def _run_whole(self, kv: UnkeptKV) -> torch.Tensor:
        """Run a whole text in the fused network if passes can join, else in the class of transformers."""
        own = _own_pass(self.network)
        if own is None or own.static is not None or self.ids.shape[1] > own.capacity:
            return self.network.forward_bidirectional(self.ids[0], self.logits_of)[None]
        return own.forward(self.ids, self.mask, kv, self.logits_of)

    def place(self) -> None:
        """Set which rows of the KV buffer the pass writes and reads."""
        self.kv.place(self.start, self.mask.shape[1], self.chunk)

    def take(self, hidden: torch.Tensor, logits: torch.Tensor, company: int) -> None:
        """Store the result of a run together with others."""
        self._hidden = hidden
        self._logits = logits
        self.company = company


@torch.inference_mode()
def run_together(passes: Sequence[Pass]) -> None:
    """Run the passes over each network as one, with or without its adapter.

    Over static buffers, those with an adapter are another pass than those without. A pass that cannot join
    is left to ``Pass.result``.
    """
    alike: defaultdict[tuple[int, ...], list[Pass]] = defaultdict(list)
    for each in passes:
        if each.joins:
            static = _static_of(each.network)
            kinds = static.company(each.mask, each.kv) if static and isinstance(each.kv, KVBuffer) else ()
            alike[id(static or _own_pass(each.network)), *kinds].append(each)
    for group in alike.values():
        if static := _static_of(group[0].network):
            _run_static(static, group)
            continue
        for some in _as_tried(group):
            if len(some) > 1:
                _run_joined(some)


def _run_static(static: StaticPasses, passes: Sequence[Pass]) -> None:
    """Run passes over static buffers of one pool in as few passes as its shapes allow, in their order."""
    groups: list[list[Pass]] = []
    for each in passes:
        if groups and static.joined_shape(*_size([*groups[-1], each])):
            groups[-1].append(each)
        else:
            groups.append([each])
    for some in groups:
        shape = static.joined_shape(*_size(some))
        if len(some) > 1 and shape:
            for each, (hidden, logits) in zip(some, static.together(_parts(some), shape), strict=True):
                each.take(hidden, logits, len(some))


def _size(passes: Sequence[Pass]) -> tuple[int, int]:
    """Return the number of entries of passes that run as one, and the rows of the longest."""
    return sum(len(each.ids) for each in passes), max(each.ids.shape[1] for each in passes)


def _parts(passes: Sequence[Pass]) -> list[Part]:
    for each in passes:
        each.place()
    return [Part(each.ids, each.mask, each.kv, each.start, each.logits_of, each.positions) for each in passes]


def _as_tried(passes: Sequence[Pass]) -> list[list[Pass]]:
    """Group passes so that no group has more rows than ``rows_alike`` compared."""
    groups: list[list[Pass]] = []
    rows = TRIED_ROWS[-1]
    for each in passes:
        rows += each.ids.numel()
        if rows > TRIED_ROWS[-1]:
            groups.append([])
            rows = each.ids.numel()
        groups[-1].append(each)
    return groups


def _run_joined(passes: Sequence[Pass]) -> None:
    parts = _parts(passes)
    adapted = [each.network for each in passes if isinstance(each.network, CanvasNetwork)]
    own = _own_pass(passes[0].network)
    assert own is not None
    if adapted:
        outputs = adapted[0].forward_parts(parts, [isinstance(p.network, CanvasNetwork) for p in passes])
    else:
        outputs = own.forward_parts(parts)
    for each, (hidden, logits) in zip(passes, outputs, strict=True):
        each.take(hidden, logits, len(passes))


def _own_pass(network: Network) -> FusedModel | None:
    """Return the fused network without its adapter; ``None`` if transformers runs the network."""
    frozen = network.frozen if isinstance(network, CanvasNetwork) else network
    return frozen if isinstance(frozen, FusedModel) else None


def _static_of(network: Network) -> StaticPasses | None:
    """Return the passes over static buffers of a network; those with its adapter are other ones."""
    return network.static if isinstance(network, FusedModel | CanvasNetwork) else None


def until_spent(steps: Generator[Pass, None, T], deadline: Deadline) -> Generator[Pass, None, T | None]:
    """Yield the passes of ``steps``, return its result; ``None`` if the deadline passed before a pass ran."""
    while True:
        try:
            step = next(steps)
        except StopIteration as ended:
            found: T = ended.value
            return found
        yield step
        if not step.done and deadline.spent():
            steps.close()
            return None


def finish(steps: Generator[Pass, None, T]) -> T:
    """Run ``steps`` to its end, each pass alone, and return its result."""
    while True:
        try:
            next(steps)
        except StopIteration as ended:
            found: T = ended.value
            return found


@torch.inference_mode()
def rows_alike(network: FusedModel, *, exact: bool = False, sizes: Sequence[int] = ()) -> bool:
    """Whether a row of a product has the same bits for any number of rows in the pass, on random numbers.

    In fp32 and bf16 that depends on the kernels, which some libraries choose by the number of rows.
    ``exact``: products are exact (int8), so one layer is tried, with fewer rows. ``sizes``: other numbers of
    rows than ``TRIED_ROWS``, the largest last.
    """
    sizes = sizes or (TRIED_ROWS[:8] if exact else TRIED_ROWS)
    stack = network.stack.layers
    layers = stack[:1] if exact else (stack[0], stack[-1])
    generator = torch.Generator().manual_seed(0)
    heads = network.stack.sizes.heads * network.stack.sizes.head_dim
    x, attended = (
        torch.randn(sizes[-1], width, generator=generator).to(network.device, network.dtype)
        for width in (len(network.final_norm), heads)
    )
    tried = [(product, x) for layer in layers for product in (layer.qkv, layer.mlp)]
    tried += [(layer.out, attended) for layer in layers]
    tried += [] if exact else [(network.head, x)]
    return all(_is_alike(product, rows, sizes) for product, rows in tried)


def _is_alike(product: Linear, x: torch.Tensor, sizes: Sequence[int]) -> bool:
    whole = product(x)
    return all(torch.equal(product(x[-rows:]), whole[-rows:]) for rows in sizes)
