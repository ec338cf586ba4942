"""Checks that the text is the same for any drafts and any cache contents, under CUDA graphs."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch

from bench.gpu.clock import waits
from bench.gpu.figures import Figure
from bench.gpu.setup import ROWS, Bench, speculation
from bench.gpu.shapes import Shape
from fimserver.engine.forward.pass_cost import PassCosts, shapes
from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.engine.speculation.drafts import DecodeState, Draft, Drafter, RandomDrafter, ScriptedDrafter
from fimserver.engine.speculation.speculate import Speculation
from fimserver.types import Deadline, Request, Sampling

SEEDS = 3


class HalfRight:
    """Drafter whose drafts begin with the true tokens and end with random ones."""

    name = "half"
    inline = True
    keeps_text = False

    def __init__(self, truth: Sequence[int], seed: int) -> None:
        self.truth = list(truth)
        self.random = random.Random(seed)

    def propose(self, state: DecodeState, size: int) -> list[Draft]:
        rest = self.truth[len(state.ids) :][:size]
        drafts = []
        for _ in range(3):
            right = rest[: self.random.randint(0, size)]
            tokens = (*right, *(self.random.randrange(100) for _ in range(size - len(right))))
            drafts.append(Draft(self.name, tokens, (5,) * len(tokens)))
        return drafts

    def observe(self, state: DecodeState, *, ended: bool) -> None:
        pass


def begin(made: Speculation, prompt: list[int], request: Request) -> DecodeState:
    """The state after the first token."""
    state = DecodeState(request, prompt, [], [], made.verifier.picker(request))
    logits = made.cache.prefill(prompt, Deadline(), want_logits=True)
    assert logits is not None
    state.hidden = made.cache.network.hidden[0, -1]
    made.begin(state, logits)
    return state


def decode(made: Speculation, prompt: list[int], request: Request) -> list[int]:
    """``request.sampling.max_tokens`` ids after a prompt."""
    state = begin(made, prompt, request)
    while len(state.ids) < request.sampling.max_tokens:
        made.round(state, request.sampling.max_tokens - len(state.ids) - 1)
    return state.ids


def measure(bench: Bench, shape: Shape) -> Iterator[Figure]:
    cache, found, _ = bench.decoder(shape)
    tried = len(shapes(cache.kv.branches))
    note = f"shapes: {', '.join(f'{b}x{r}' for b, r in found.ms)}"
    yield Figure(f"{shape.name} shapes with the bits of plain decoding", len(found.ms), "shapes", tried, note)
    flat = PassCosts(dict.fromkeys(found.ms, 1.0))  # so that drafts pay in every shape
    prompt = bench.ids(bench.sizes.context - 7, shape)
    for name, temperature in (("greedy", 0.0), ("keyed", 0.8)):
        request = Request("", "", Sampling(bench.sizes.tokens, temperature, seed=3))
        plain = decode(speculation(cache, flat), prompt, request)
        same = [
            decode(speculation(cache, flat, (drafter,)), prompt, request) == plain
            for drafter in _drafters(plain, shape)
        ]
        yield _share(f"{shape.name} {name}: texts equal with drafts and without", same)
        yield _share(f"{shape.name} {name}: texts equal cold and warm", _caches(cache, flat, prompt, request))
    yield _against_eager(bench, shape, cache, prompt)
    yield _waits(bench, shape, speculation(cache, flat), prompt)


def _drafters(plain: list[int], shape: Shape) -> Iterator[Drafter]:
    yield ScriptedDrafter(plain)
    for seed in range(SEEDS):
        yield HalfRight(plain, seed)
        yield RandomDrafter(seed, shape.vocab)


def _caches(cache: PrefixCache, costs: PassCosts, prompt: list[int], request: Request) -> list[bool]:
    """Decode cold, after a shorter prompt, after a longer one, and after another one."""
    cache.clear()
    cold = decode(speculation(cache, costs), prompt, request)
    same = []
    for before in (prompt[: len(prompt) // 2], [*prompt, 1, 2, 3], prompt[1:]):
        cache.prefill(before, Deadline(), want_logits=False)
        same.append(decode(speculation(cache, costs), prompt, request) == cold)
    return same


def _share(name: str, same: Sequence[bool]) -> Figure:
    return Figure(name, sum(same) / len(same), "share", 1.0, f"{len(same)} texts")


def _against_eager(bench: Bench, shape: Shape, cache: PrefixCache, prompt: list[int]) -> Figure:
    """Logits of a replayed pass against those of the same kernels launched one by one."""
    eager = bench.cache(shape, graphs=False, branches=1)
    draft = bench.ids(ROWS, shape, seed=2)
    logits = []
    for each in (cache, eager):
        each.prefill(prompt, Deadline(), want_logits=False)
        logits.append(each.branches([draft], len(prompt))[0])
    apart = relative(*logits)
    return Figure(
        f"{shape.name} logits with graphs against without, relative", apart, "", note="0: to the bit"
    )


def relative(found: torch.Tensor, reference: torch.Tensor) -> float:
    """Norm of the difference over that of the reference."""
    return float((found.float() - reference.float()).norm() / reference.float().norm())


def _waits(bench: Bench, shape: Shape, made: Speculation, prompt: list[int]) -> Figure:
    """How often the host waits for the device in a round."""
    name = f"{shape.name} host waits in a round"
    if bench.device.type != "cuda":
        return Figure(name, None, "waits", 1.0, "needs CUDA")
    state = begin(made, prompt, Request("", "", Sampling(temperature=0.8)))
    rounds = 4

    def run() -> None:
        for _ in range(rounds):
            made.round(state, 0)

    return Figure(name, waits(run) / rounds, "waits", 1.0)
