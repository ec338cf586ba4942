"""Shapes of a decoding pass that leave every bit as it is, and the time of each on this device.

A shape is (branches, rows of each). Matrix products choose their kernel by the number of rows, and another
kernel may sum in another order, so each shape is compared with plain decoding before it is used.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch

from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.types import Deadline

Shape = tuple[int, int]
ROWS = (4, 8, 12, 16, 24)
BRANCHES = (1, 2, 3)
PROBED_ROWS = 8  # tokens that are compared where plain decoding runs one row a pass
MOST_ROWS = 32  # of all branches together
ROUND_ROWS = 2  # that a round writes; a pass over several branches copies them first, in every layer
_SMOOTHING = 0.1
_OUTLIER = 3.0
_ROUNDS = 5
_ENOUGH_S = 1.5  # after two rounds, no further one begins when this much time has passed
_FASTER = 0.85  # passes that take less than this share of the kept time: that was measured on a busy machine
_LOOKS = 2  # rounds of the comparison with the kept time


class PassCosts:
    """Milliseconds of a pass of each usable shape.

    The ratios between shapes are measured once; a common factor, the load, follows the passes that are run.
    """

    def __init__(self, ms: Mapping[Shape, float]) -> None:
        """A shape that measured slower than a larger one gets the larger one's time (measurement noise)."""
        self._curve = {shape: min(t for other, t in ms.items() if size(other) >= size(shape)) for shape in ms}
        self._load = 1.0
        self.company = 1  # number of passes that are run as one
        self.plain = min(self._curve, key=lambda shape: (size(shape), shape))
        self.longest = max(rows for _, rows in ms)  # of a branch
        self.branches = max(branches for branches, _ in ms)

    @property
    def ms(self) -> dict[Shape, float]:
        """Current cost of each shape.

        Passes that run as one share the time of the smallest shape, most of which is spent on reading
        weights.
        """
        shared = (1 - 1 / self.company) * self._curve[self.plain]
        return {shape: (ms - shared) * self._load for shape, ms in self._curve.items()}

    def observe(self, shape: Shape, ms: float) -> None:
        """Update the load by a pass that took ``ms``, capped at ``_OUTLIER`` times the expected time."""
        load = min(ms / self._curve[shape], _OUTLIER * self._load)
        self._load += _SMOOTHING * (load - self._load)


def measure_costs(
    cache: PrefixCache, rows: int, *, draft: bool = True, starts: Sequence[int] = ()
) -> PassCosts:
    """Try every shape on random tokens; return the times of those that have the bits of plain decoding.

    ``rows``: rows of a pass of plain decoding. ``draft``: whether other shapes can have its bits at all.
    ``starts``: positions at which shapes are tried; they are timed at the first one. Default: after the first
    chunk.
    """
    first, *others = starts or (cache.chunk,)
    if not draft:  # plain decoding runs one row, whose kernel differs from that of any other shape
        return PassCosts(_times(cache, [0], [(1, 1)], first))
    generator = torch.Generator().manual_seed(0)
    count = max(first, *others, 0) + MOST_ROWS
    ids = torch.randint(cache.network.vocab_size, (count,), generator=generator).tolist()
    alike = [shape for shape in shapes(cache.kv.branches) if shape != (1, rows)]
    for start in (*others, first):
        cache.prefill(ids[:start], Deadline(), want_logits=False)
        text = ids[start : start + MOST_ROWS]
        reference = _reference(cache, text, rows, start)
        alike = [shape for shape in alike if _is_alike(cache, text, shape, reference, start)]
    ms = _times(cache, text, [(1, rows), *alike], first)
    cache.clear()
    return PassCosts(ms)


@torch.inference_mode()
def is_outdated(costs: PassCosts, cache: PrefixCache, start: int) -> bool:
    """Whether ``costs`` were measured on a busy machine: plain passes at ``start`` are clearly faster now.

    The ratios between shapes differ on a busy machine, and with them the number of tokens worth drafting.
    Forgets the prompts in the cache.
    """
    now = _times(cache, [0] * MOST_ROWS, [costs.plain], start, rounds=_LOOKS)
    cache.clear()
    return now[costs.plain] < _FASTER * costs.ms[costs.plain]


def _is_alike(cache: PrefixCache, text: list[int], shape: Shape, reference: torch.Tensor, start: int) -> bool:
    """Whether every branch of a pass of this shape has the bits of plain decoding."""
    logits = cache.branches([text[: shape[1]]] * shape[0], start)
    shared = min(len(reference), shape[1])
    return all(torch.equal(branch[:shared], reference[:shared]) for branch in logits)


def _reference(cache: PrefixCache, text: list[int], rows: int, start: int) -> torch.Tensor:
    """Return logits (R, V) of plain decoding: of one pass of ``rows`` rows, or of one pass per token."""
    if rows > 1:
        return cache.branches([text[:rows]], start)[0]
    return torch.cat([cache.branches([[text[i]]], start + i)[0] for i in range(PROBED_ROWS)])


def size(shape: Shape) -> int:
    """Return the number of rows of all branches."""
    return shape[0] * shape[1]


def shapes(branches: int) -> list[Shape]:
    """Return the shapes to try, smallest first."""
    return sorted(
        ((b, r) for b in BRANCHES for r in ROWS if b <= branches and b * r <= MOST_ROWS),
        key=lambda s: (size(s), s),
    )


def _times(
    cache: PrefixCache, text: list[int], shapes: Sequence[Shape], start: int, rounds: int = _ROUNDS
) -> dict[Shape, float]:
    """Return the fastest pass of each shape in milliseconds, measured in rounds over all shapes.

    In rounds, other work on the machine slows all shapes alike: draft lengths depend on their ratios.
    """
    times: dict[Shape, float] = dict.fromkeys(shapes, float("inf"))
    began = time.perf_counter()
    for number in range(rounds):
        if number > 1 and time.perf_counter() - began > _ENOUGH_S:
            break
        for shape in shapes:
            cache.kv.wrote_from(max(0, start - ROUND_ROWS))
            started = time.perf_counter()
            cache.branches([text[: shape[1]]] * shape[0], start)[0, 0, 0].item()  # waits for the device
            times[shape] = min(times[shape], 1000 * (time.perf_counter() - started))
    return times
