"""The cached canvas against the uncached one: time on random weights, and what changes on trained ones.

python -m bench.canvas_cache time [--context 1024 --canvas 32 --rounds 7]
python -m bench.canvas_cache tokens [FOLDER] [--spans 40]

``time`` decodes the same middles with every cache in turn, one slot a step, in one process. ``tokens`` runs
nano's weights, or those of another checkpoint in its layout, with every token seeing every other, on holes of
the validation corpus: the suffix comes first, then the prefix, then the canvas.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from bench.intervals import bootstrap, geometric_mean_ratio, median, ratio_of_sums
from fimserver.cards import Card, get_card
from fimserver.engine.cache_check import CacheCheck, DecodedCanvas, check_canvas
from fimserver.engine.denoising.canvas import FullCanvas
from fimserver.engine.denoising.denoiser import CanvasState, Denoiser
from fimserver.engine.denoising.dual_cache import DualCache, DualCanvas
from fimserver.engine.denoising.refresh import Refresh, read_cache
from fimserver.engine.denoising.schedules import SCHEDULES
from fimserver.engine.denoising.tokens import Tokens
from fimserver.engine.diffusion import Diffusion
from fimserver.engine.engines import make_dllm
from fimserver.engine.forward.network import NativeNetwork
from fimserver.engine.forward.passes import finish
from fimserver.engine.load import load
from fimserver.engine.prompts.prompt import cut_context, fim_prompt
from fimserver.engine.runtime import DraftContext, make_runtime
from fimserver.settings import Settings
from fimserver.types import Deadline, Request, Sampling, ms_since
from models.training.corpus import CACHE
from models.training.holes import cut
from models.training.train import NANO, read_texts

VOCABULARY = 8192
SUFFIX_SHARE = 0.25
SHORTEST, LONGEST = 8, 32  # tokens of a middle
TIMED = ("none", "dual", "checked")
COMPARED = (
    "dual:2",
    "dual:4",
    "dual:8",
    "dual",
    "dual:16,share=0.25",
    "dual:1000,share=1000",
    "dual:16,window=8",
)
BOUNDS = (0.1, 0.25, 0.5, 1.0)  # nats a token, of the veto


@dataclass(frozen=True)
class Sizes:
    """A random network of Dream's shape, and a middle."""

    layers: int
    hidden: int
    context: int
    canvas: int


class Timed:
    """Middles of a random network with different caches."""

    def __init__(self, sizes: Sizes) -> None:
        torch.manual_seed(0)
        config: Any = Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=sizes.hidden,
            intermediate_size=3 * sizes.hidden,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.hidden // 64,
            num_key_value_heads=max(1, sizes.hidden // 128),
            max_position_embeddings=2 * (sizes.context + sizes.canvas),
        )
        config.is_causal = False
        model: Any = Qwen2ForCausalLM(config).eval()
        self.sizes = sizes
        self.network = NativeNetwork(model, torch.device("cpu"))
        capacity = sizes.context + sizes.canvas
        self.cache = DualCache(self.network, capacity, model.model.rotary_emb.inv_freq)
        self.mask = VOCABULARY - 1
        self.tokens = Tokens(self.mask, None, None, None, (self.mask,))

    def middle(self, name: str, seed: int) -> tuple[float, int]:
        """Milliseconds and rows of one middle, its last exact pass included."""
        rng = random.Random(seed)
        ids = [rng.randrange(VOCABULARY - 1) for _ in range(self.sizes.context)]
        cut_at = int((1 - SUFFIX_SHARE) * len(ids))
        left, right = ids[:cut_at], ids[cut_at:]
        rules = read_cache(name)
        self.cache.clear()
        before = self.cache.rows
        started = time.perf_counter()
        if rules is None:
            full = FullCanvas(self.network, left, right, shift=True)
            self._fill(full.predict, seed)
            return ms_since(started), full.rows
        canvas = DualCanvas(self.cache, left, right, rules, self.mask, shift=True)
        state = self._fill(canvas.predict, seed)
        self._check(canvas, rules, state)
        return ms_since(started), self.cache.rows - before

    def _fill(self, predict: Callable[[list[int]], torch.Tensor], seed: int) -> CanvasState:
        slots = self.sizes.canvas
        request = Request("", "", sampling=Sampling(slots, seed=seed))
        steps = Denoiser(self.tokens, SCHEDULES["entropy"](), slots).run(predict, slots, request, Deadline())
        return list(steps)[-1]

    def _check(self, canvas: DualCanvas, rules: Refresh, state: CanvasState) -> None:
        stale = [slot for slot, step in sorted(state.steps.items()) if not canvas.exact[step]]
        if rules.bound is not None and stale:
            finish(canvas.drift(state.slots, stale))


def time_report(sizes: Sizes, rounds: int) -> Iterator[str]:
    """Lines of a table: one for each cache."""
    timed = Timed(sizes)
    for name in TIMED:
        timed.middle(name, seed=0)  # warms up
    took: dict[str, list[float]] = {name: [] for name in TIMED}
    rows = dict.fromkeys(TIMED, 0)
    for turn in range(rounds):
        order = TIMED[turn % len(TIMED) :] + TIMED[: turn % len(TIMED)]
        for name in order:
            ms, rows[name] = timed.middle(name, seed=turn + 1)
            took[name].append(ms)
    yield (
        f"prompt {sizes.context}, canvas {sizes.canvas}, {sizes.layers} layers of {sizes.hidden},"
        f" {torch.get_num_threads()} threads, {rounds} rounds in turn\n"
    )
    yield "| cache | ms a middle (median) | times faster than none | rows |"
    yield "|---|---|---|---|"
    for name in TIMED:
        middle = bootstrap(median, took[name]).text(0)
        ratio = bootstrap(geometric_mean_ratio, took["none"], took[name]).text(2, "x")
        yield f"| `{name}` | {middle} | {ratio} | {rows[name]} |"


def both_ways_card(schedule: str) -> Card:
    """Nano's card with a canvas that its context sees."""
    nano = get_card("nano")
    assert nano.canvas is not None
    fields = {"attention": "full", "length": "fixed", "end": None, "max_tokens": LONGEST}
    forbidden = (*nano.canvas.forbidden, "<|eot|>")
    canvas = nano.canvas.model_copy(
        update=fields | {"schedule": schedule, "cache": "dual", "forbidden": forbidden}
    )
    return nano.model_copy(update={"name": "both-ways", "canvas": canvas, "drafters": {}, "files": {}})


@dataclass(frozen=True)
class Span:
    """A hole with as many slots as its middle has tokens."""

    request: Request
    truth: tuple[str, ...]


def spans(engine: Diffusion, texts: Sequence[str], count: int) -> Iterator[Span]:
    """Holes whose middle has 8 to 32 tokens, the same for the same texts."""
    rng = random.Random(0)
    vocabulary = engine.vocabulary
    while count:
        hole = cut(rng.choice(texts), rng)
        ids = vocabulary.encode(hole.middle) if len(hole.middle) < 8 * LONGEST else []
        if SHORTEST <= len(ids) <= LONGEST:
            sampling = Sampling(len(ids), stop="none")
            prefix, suffix = hole.text[: hole.start], hole.text[hole.end :]
            request = Request(prefix, suffix, sampling=sampling, canvas_tokens=len(ids))
            yield Span(request, tuple(vocabulary.decode([token]) for token in ids))
            count -= 1


def open_canvas(engine: Diffusion, request: Request, rules: Refresh) -> DualCanvas:
    """A canvas after suffix and prefix, as nano was trained."""
    card = engine.card
    assert engine.dual is not None
    assert card.fim is not None
    context = cut_context(request, card, engine.vocabulary, tokens=card.prompt_tokens)
    left = fim_prompt(context, card.fim, engine.vocabulary)
    return DualCanvas(engine.dual, left, [], rules, engine.tokens.mask, shift=False)


def tokens_report(folder: Path, texts: Sequence[str], count: int, schedule: str) -> Iterator[str]:
    """Lines of a table: one for each cache."""
    settings = Settings()
    loaded = load(both_ways_card(schedule), folder, torch.device("cpu"))
    engine = make_dllm(DraftContext(make_runtime(loaded, settings), settings))
    found = list(spans(engine, texts, count))
    exact: dict[int, DecodedCanvas] = {}
    yield (
        f"{count} spans, schedule {schedule}; veto: share of middles with a drift above"
        f" {', '.join(f'{bound:g}' for bound in BOUNDS)} nats a token\n"
    )
    yield (
        "| cache | equal tokens | middles equal | right tokens (without cache) | drift mean, most | veto |"
        " times fewer rows |"
    )
    yield "|---|---|---|---|---|---|---|"
    for name in COMPARED:
        rules = read_cache(name)
        assert rules is not None
        checks = [
            check_canvas(engine, open_canvas(engine, span.request, rules), span.request, exact.get(i))
            for i, span in enumerate(found)
        ]
        exact |= {i: check.exact for i, check in enumerate(checks)}
        yield f"| `{name}` | " + " | ".join(_cells(found, checks)) + " |"


def _cells(found: Sequence[Span], checks: Sequence[CacheCheck]) -> Iterator[str]:
    lengths = [float(check.tokens) for check in checks]
    equal = [float(check.equal) for check in checks]
    yield bootstrap(lambda a, b: 100 * ratio_of_sums(a, b), equal, lengths).text(1, " %")
    yield f"{sum(check.equal == check.tokens for check in checks)} of {len(checks)}"
    right = [_right(check.cached, span) for check, span in zip(checks, found, strict=True)]
    plain = [_right(check.exact, span) for check, span in zip(checks, found, strict=True)]
    yield f"{100 * sum(right) / sum(lengths):.1f} % ({100 * sum(plain) / sum(lengths):.1f} %)"
    drifts = [check.drift for check in checks]
    yield f"{sum(drifts) / len(drifts):.3f}, {max(drifts):.2f}"
    above = (sum(drift > bound for drift in drifts) for bound in BOUNDS)
    yield ", ".join(f"{100 * n / len(drifts):.0f} %" for n in above)
    yield f"{sum(c.exact.rows for c in checks) / sum(c.cached.rows for c in checks):.1f}"


def _right(decoded: DecodedCanvas, span: Span) -> int:
    return sum(a == b for a, b in zip(decoded.tokens, span.truth, strict=False))


def main() -> None:
    """Parse the verb and print its table as it comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    timing = verbs.add_parser("time")
    sizes: Mapping[str, int] = {"layers": 6, "hidden": 256, "context": 1024, "canvas": 32, "rounds": 7}
    for name, default in sizes.items():
        timing.add_argument(f"--{name}", type=int, default=default)
    comparing = verbs.add_parser("tokens")
    comparing.add_argument("folder", type=Path, nargs="?", default=NANO)
    comparing.add_argument("--spans", type=int, default=40)
    comparing.add_argument("--corpus", type=Path, default=CACHE)
    comparing.add_argument("--schedule", default="entropy")
    options = parser.parse_args()
    if options.verb == "time":
        sizes_ = Sizes(options.layers, options.hidden, options.context, options.canvas)
        lines = time_report(sizes_, options.rounds)
    else:
        texts = read_texts(options.corpus, "valid")
        lines = tokens_report(options.folder, texts, options.spans, options.schedule)
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
