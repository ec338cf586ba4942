"""Forward passes that have not been run yet, so that those of several requests can run as one.

A loop yields a pass and goes on at the next step of its iterator. A caller that runs several such loops may
run their passes together in between; a pass that was not run by then runs when its result is asked for.
Products run over the rows of all texts at once, attention over each text's own keys and values, so every row
has the bits that it has alone (``rows_alike`` finds out whether the products of a network allow that).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Sequence
from typing import TypeVar

import torch

from fimserver.engine.forward.adapter import CanvasNetwork
from fimserver.engine.forward.fused import FusedModel
from fimserver.engine.forward.kv import KVBuffer
from fimserver.engine.forward.layers import Linear, Part
from fimserver.engine.forward.network import Network
from fimserver.types import Deadline

T = TypeVar("T")
TRIED_ROWS = (1, 2, 3, 4, 8, 13, 24, 40, 63, 64, 96, 129, 256)  # of a product, when it is tried


class Pass:
    """Ids (B, M) of one text at positions from ``start`` on, for logits (B, R, V) of rows ``logits_of`` (R,).

    ``mask`` (M, extent) is true where a row may look. ``company``: how many passes ran as one.
    """

    def __init__(
        self,
        network: Network,
        kv: KVBuffer,
        ids: torch.Tensor,
        start: int,
        mask: torch.Tensor,
        logits_of: torch.Tensor,
        *,
        positions: torch.Tensor | None = None,
        reads_prompt: bool = False,
        chunk: int = 0,
    ) -> None:
        """``positions`` (M,): of the rows in the text, where they are not those from ``start`` on.

        ``reads_prompt``: rows of a prompt, so many that others would have to wait for them. ``chunk``: they
        attend chunk by chunk of so many; 0: as one.
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
        """Whether it may run with others."""
        own = _own_pass(self.network)
        return own is not None and own.joins

    @property
    def done(self) -> bool:
        return self._logits is not None

    @torch.inference_mode()
    def result(self) -> torch.Tensor:
        """Logits (B, R, V); the network's ``hidden`` is this pass's afterwards."""
        if self._logits is None:
            self._logits = self._run()
        elif len(self.logits_of):
            self.network.hidden = self._hidden
        return self._logits

    def _run(self) -> torch.Tensor:
        self.place()
        if self.positions is None:
            return self.network.forward(self.ids, self.mask, self.kv, self.logits_of)
        assert isinstance(self.network, CanvasNetwork)
        return self.network.forward_at(self.ids, self.positions, self.mask, self.kv, self.logits_of)

    def place(self) -> None:
        """Set the KV rows that are written and read."""
        self.kv.place(self.start, self.mask.shape[1], self.chunk)

    def take(self, hidden: torch.Tensor, logits: torch.Tensor, company: int) -> None:
        """Set the result of a run with others."""
        self._hidden = hidden
        self._logits = logits
        self.company = company


@torch.inference_mode()
def run_together(passes: Sequence[Pass]) -> None:
    """Run passes, those over one network as one, those through its adapter included.

    One that cannot join is left for ``Pass.result``.
    """
    alike: defaultdict[int, list[Pass]] = defaultdict(list)
    for each in passes:
        if each.joins:
            alike[id(_own_pass(each.network))].append(each)
    for group in alike.values():
        for some in _as_tried(group):
            if len(some) > 1:
                _run_joined(some)


def _as_tried(passes: Sequence[Pass]) -> list[list[Pass]]:
    """The passes in groups with no more rows than products were tried with."""
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
    for each in passes:
        each.place()
    parts = [
        Part(each.ids, each.mask, each.kv, each.start, each.logits_of, each.positions) for each in passes
    ]
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
    """What runs the rows of a network without its adapter; ``None``: a class of transformers."""
    frozen = network.frozen if isinstance(network, CanvasNetwork) else network
    return frozen if isinstance(frozen, FusedModel) else None


def until_spent(steps: Generator[Pass, None, T], deadline: Deadline) -> Generator[Pass, None, T | None]:
    """The passes of a loop and what it returns; ``None`` where time was up before one of them was run."""
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
    """Run a loop to its end, every pass by itself; what it returns."""
    while True:
        try:
            next(steps)
        except StopIteration as ended:
            found: T = ended.value
            return found


@torch.inference_mode()
def rows_alike(network: FusedModel, *, exact: bool = False) -> bool:
    """Whether rows of products have the same bits whatever rows are beside them, tried on random numbers.

    In fp32 and bf16 that depends on the kernels, which some libraries choose by the number of rows.
    ``exact``: products are exact sums; what is around those of one layer is tried, with fewer rows.
    """
    sizes = TRIED_ROWS[:8] if exact else TRIED_ROWS
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
