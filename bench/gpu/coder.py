"""Both routes of a real coder on the same held-out prompts, through our pass in bf16 under CUDA graphs.

The ar route: plain, with n-gram drafts, and with those and the canvas adapter's. The dllm route: a canvas
under the schedule ``checked``, whose guesses the coder verifies. Arms alternate prompt by prompt.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bench.gpu.clock import wait
from bench.gpu.figures import Figure
from bench.gpu.setup import ROWS, Bench, costs_of, uncaptured
from bench.gpu.shapes import Shape
from bench.intervals import Interval, bootstrap, geometric_mean_ratio, median, ratio_of_sums
from fimserver.engine.capture import capture_masks
from fimserver.engine.forward.adapter import CanvasNetwork, load_adapter
from fimserver.engine.forward.fused import fuse
from fimserver.engine.forward.pass_cost import ROWS as PASS_ROWS
from fimserver.engine.forward.pass_cost import PassCosts
from fimserver.engine.forward.passes import finish
from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.engine.speculation.drafts import DecodeState
from fimserver.engine.speculation.lookahead import MOST_MASKED_ROWS, MOST_MASKS, Lookahead, measure_masks
from fimserver.engine.speculation.speculate import Speculation
from fimserver.engine.speculation.verify import GumbelMaxVerifier
from fimserver.errors import FimError
from fimserver.types import Deadline, Request, Sampling

PROMPTS = 40
WARM_UPS = 3  # prompts that do not count: policies learn what pays
CHECKED_MASKS = 2  # of a group of the schedule ``checked``


@dataclass(frozen=True)
class Middle:
    """One middle: its tokens, the passes after the first token, and the times of the first and the others."""

    ids: list[int]
    passes: int
    first_ms: float
    rest_ms: float

    @property
    def ms(self) -> float:
        return self.first_ms + self.rest_ms


@dataclass(frozen=True)
class Real:
    """A coder with its cache, costs of passes, and prompts."""

    bench: Bench
    shape: Shape
    cache: PrefixCache
    costs: PassCosts
    held_out: Any
    canvas: CanvasNetwork | None
    mask_costs: Mapping[int, float]

    def writer(self, *, ngram: bool = False, masks: int = 0, alone: bool = False) -> Speculation:
        """``masks``: most of a group of the canvas adapter; 0: it drafts nothing."""
        from bench.gpu.packed_coder import TokenCharacters
        from fimserver.engine.drafters.each_prompt import EachPrompt
        from fimserver.engine.drafters.ngram.drafter import NGramDrafter

        vocabulary: Any = TokenCharacters(self.shape.vocab, self.held_out.markers)
        drafters: list[Any] = []
        if ngram:
            drafters.append(EachPrompt("ngram", self.cache, lambda: NGramDrafter(vocabulary)))
        ahead = None
        if masks:
            assert self.canvas
            ahead = Lookahead(self.cache, self.canvas, masks, self.mask_costs)
            ahead.alone = alone
            drafters.append(ahead)
        verifier = GumbelMaxVerifier(at_once=True)
        return Speculation(self.cache, drafters, verifier, PassCosts(self.costs.ms), ahead)

    def write(self, made: Speculation, prompt: Any, tokens: int) -> Middle:
        """Decode up to ``tokens`` tokens of a middle, from an empty cache."""
        self.cache.clear()
        wait(self.bench.device)
        started = time.perf_counter()
        state = self._begin(made, prompt, tokens)
        first = time.perf_counter()
        passes = 0
        while not self._ended(state, tokens):
            made.round(state, tokens - len(state.ids) - 1)
            passes += 1
        wait(self.bench.device)
        ended = time.perf_counter()
        made.observe(state, ended=True)
        return Middle(state.ids, passes, 1000 * (first - started), 1000 * (ended - first))

    def warm_ms(self, made: Speculation, prompt: Any) -> float:
        """Milliseconds to the first token after the prompt's last token was typed."""
        self.cache.clear()
        self.cache.prefill(prompt.ids[:-1], Deadline(), want_logits=False)
        wait(self.bench.device)
        started = time.perf_counter()
        self._begin(made, prompt, 1)
        return 1000 * (time.perf_counter() - started)

    def _begin(self, made: Speculation, prompt: Any, tokens: int) -> DecodeState:
        """Choose the first token, which waits for the device."""
        request = Request("", "", Sampling(tokens))
        state = DecodeState(request, prompt.ids, prompt.prefix, prompt.suffix, made.verifier.picker(request))
        state.useful = self._useful
        ahead = made.lookahead
        beyond = ahead.beyond(made.policy.costs) if ahead else None
        reading = self.cache.prefilling(prompt.ids, Deadline(), want_logits=True, beyond=beyond)
        with torch.inference_mode():
            logits = finish(reading)
            assert logits is not None
            logits = ahead.opened(logits, beyond) if ahead else logits
            state.hidden = ahead.text.hidden[0] if ahead else self.cache.network.hidden[0, -1]
            made.begin(state, logits)
        return state

    def _useful(self, draft: Any) -> int:
        markers = self.held_out.markers
        return next((n + 1 for n, token in enumerate(draft) if token in markers), len(draft))

    def _ended(self, state: DecodeState, tokens: int) -> bool:
        """Cut the middle after the first marker; whether it has one, or is long enough."""
        kept = self._useful(state.ids)
        over = kept < len(state.ids) or state.ids[-1] in self.held_out.markers
        del state.ids[kept:]
        return over or len(state.ids) >= tokens


def prepare(packed: Path | None, dtype: torch.dtype) -> None:
    """Read the weights into main memory while the device is in use by another process."""
    with suppress(ImportError, FimError):  # said when they are measured
        from bench.gpu import packed_coder

        if packed:
            packed_coder.read_weights(packed / packed_coder.BASE, dtype)


def measure(bench: Bench, packed: Path | None, adapter: Path | None, *, toy: bool) -> Iterator[Figure]:
    """Yield the figures of a coder in a folder; with ``toy``, of a random one that is made now."""
    try:
        from bench.gpu import packed_coder  # noqa: F401 - it needs more than torch and transformers
    except ModuleNotFoundError as error:
        yield Figure("coder", None, "", note=f"needs {error.name}")
        return
    if packed is None and not toy:
        yield Figure("coder", None, "", note="needs --packed FOLDER")
        return
    with TemporaryDirectory() as folder:
        if packed is None:
            from bench.gpu.toy_coder import write_toy

            packed, adapter = write_toy(Path(folder))
        yield from _measure(bench, packed, adapter, toy=toy)


def _measure(bench: Bench, packed: Path, adapter: Path | None, *, toy: bool) -> Iterator[Figure]:
    started = time.perf_counter()
    real = load_real(bench, packed, adapter, toy=toy)
    yield Figure("coder read, tried and captured", time.perf_counter() - started, "s")
    note = f"shapes: {', '.join(f'{b}x{r}' for b, r in real.costs.ms)}"
    yield Figure("coder shapes with the bits of plain decoding", len(real.costs.ms), "shapes", None, note)
    for rows, cost in real.mask_costs.items():
        yield Figure(f"coder pass of {rows} rows with masks against without", 1 + cost, "times")
    arms = {"ar plain": real.writer(), "ar ngram": real.writer(ngram=True)}
    if real.canvas:
        arms["ar ngram and canvas"] = real.writer(ngram=True, masks=MOST_MASKS)
        arms["dllm checked"] = real.writer(ngram=True, masks=CHECKED_MASKS, alone=True)
    plain = arms["ar plain"]
    warm = [real.warm_ms(plain, prompt) for prompt in real.held_out.prompts][WARM_UPS:]
    found = _written(real, arms)
    first = [middle.first_ms for middle in found["ar plain"]]
    length = int(median(torch.tensor([float(len(p.ids)) for p in real.held_out.prompts])))
    for name, rows, times in (("cold", length, first), ("warm", 1, warm)):
        floor = bench.ceilings.floor_ms(real.shape, rows, length, 1)
        yield _with_interval(f"coder first token {name}", bootstrap(median, times), "ms", floor)
    for name in arms:
        yield from _arm(real, name, found, length)
    yield from _compared(found)
    yield uncaptured(real.cache, "coder")


def _written(real: Real, arms: Mapping[str, Speculation]) -> dict[str, list[Middle]]:
    """Return the middles of each arm; the order of the arms turns from prompt to prompt."""
    found: dict[str, list[Middle]] = {name: [] for name in arms}
    names = list(arms)
    for number, prompt in enumerate(real.held_out.prompts):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            found[name].append(real.write(arms[name], prompt, real.bench.sizes.tokens))
    return {name: middles[WARM_UPS:] for name, middles in found.items()}


def _arm(real: Real, name: str, found: Mapping[str, list[Middle]], length: int) -> Iterator[Figure]:
    middles = found[name]
    same = [float(m.ids == p.ids) for m, p in zip(middles, found["ar plain"], strict=True)]
    after = [float(len(m.ids) - 1) for m in middles]
    floor = real.bench.ceilings.floor_ms(real.shape, 1, length, 1)
    per_token = bootstrap(ratio_of_sums, [m.rest_ms for m in middles], after)
    yield _with_interval(f"coder {name}: ms a token", per_token, "ms", floor)
    passes = bootstrap(ratio_of_sums, [float(m.passes) for m in middles], after)
    yield _with_interval(f"coder {name}: passes a token", passes, "")
    per_pass = sum(m.rest_ms for m in middles) / max(1, sum(m.passes for m in middles))
    yield Figure(f"coder {name}: ms a pass", per_pass, "ms", floor)
    share = sum(same) / len(same)
    yield Figure(f"coder {name}: texts equal to plain decoding", share, "share", 1.0, f"{len(same)} texts")


def _compared(found: Mapping[str, list[Middle]]) -> Iterator[Figure]:
    """Geometric mean of the ratios of whole middles, first token included."""
    pairs = [
        ("ar ngram", "ar plain"),
        ("ar ngram and canvas", "ar ngram"),
        ("dllm checked", "ar ngram"),
        ("dllm checked", "ar plain"),
    ]
    for of, to in pairs:
        if of in found:
            ratio = bootstrap(geometric_mean_ratio, [m.ms for m in found[of]], [m.ms for m in found[to]])
            yield _with_interval(f"coder time of a middle, {of} against {to}", ratio, "times")


def _with_interval(name: str, found: Interval, unit: str, floor: float | None = None) -> Figure:
    return Figure(name, found.value, unit, floor, f"95 % {found.low:.3g} to {found.high:.3g}")


def load_real(bench: Bench, packed: Path, adapter: Path | None, *, toy: bool) -> Real:
    """Read a coder and its prompts, and capture its passes. Raises ``LoadError``."""
    from bench.gpu import packed_coder as files
    from bench.gpu.toy_coder import TOY_MARKERS, TOY_PAD

    sizes = bench.sizes
    made_up = toy and (packed / "toy").exists()
    first_marker, pad = (TOY_MARKERS, TOY_PAD) if made_up else (files.FIRST_MARKER, files.FIM_PAD)
    capacity = sizes.context
    longest = capacity - sizes.tokens - 40
    count = WARM_UPS + (PROMPTS if not toy else 3)
    held_out = files.read_held_out(packed / files.VALID, count, longest, first_marker=first_marker, pad=pad)
    bench.forget()
    model = files.load_coder(packed / files.BASE, bench.device, bench.dtype)
    network = fuse(model, capacity, ROWS)
    graphs = bench.graphs()
    network.use_graphs(graphs)
    cache = PrefixCache(network, capacity, sizes.chunk, 3)
    costs = costs_of(cache)
    canvas = None
    mask_costs: Mapping[int, float] = {}
    if adapter is not None:
        canvas = CanvasNetwork(network, load_adapter(adapter, held_out.base), held_out.mask)
        canvas.use_graphs(graphs)
        rows = [rows for rows in PASS_ROWS if rows <= MOST_MASKED_ROWS]
        mask_costs = measure_masks(cache, canvas, rows)
        capture_masks(cache, canvas, rows, MOST_MASKS)
    return Real(bench, files.shape_of(model, "coder"), cache, costs, held_out, canvas, mask_costs)
