"""Milliseconds per token and per denoising step, ours beside transformers' ``generate``, in one run.

Usage: ``make bench`` or ``python -m bench.engines [--model FOLDER] [--out FILE.json]``. Every arm gets the
same prompts and the same number of tokens (ends are ignored), arms take turns, the median of the turns is
what counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fimserver.cards import MODELS, get_card
from fimserver.engine.autoregressive import Autoregressive
from fimserver.engine.denoising.canvas import CachedCanvas
from fimserver.engine.diffusion import Diffusion
from fimserver.engine.engines import make_ar, make_dllm
from fimserver.engine.load import Loaded, load
from fimserver.engine.runtime import DraftContext, make_runtime
from fimserver.settings import Settings
from fimserver.types import Deadline, Request, Sampling

TOKENS = 48
SOURCE = Path(argparse.__file__)
Arm = Callable[[Request], tuple[int, float]]  # units done (tokens or steps), seconds


def prompts() -> list[Request]:
    """Three places of a file of the standard library: near its start, in its middle, near its end."""
    text = SOURCE.read_text("utf-8")
    cuts = [text.index(name) for name in ("class HelpFormatter", "class Namespace", "class ArgumentParser")]
    return [
        Request(text[:cut], text[cut + 40 :], sampling=Sampling(max_tokens=TOKENS, stop="none"))
        for cut in cuts
    ]


def generate_arm(loaded: Loaded, engine: Autoregressive, tokens: int = TOKENS) -> Arm:
    """Transformers' greedy ``generate``, whole call."""

    def run(request: Request) -> tuple[int, float]:
        prompt = torch.tensor([engine.prompt(request)])
        started = time.perf_counter()
        loaded.model.generate(
            prompt, do_sample=False, max_new_tokens=tokens, eos_token_id=None, pad_token_id=2
        )
        return tokens, time.perf_counter() - started

    return run


def first_token_arm(engine: Autoregressive, *, typed: bool) -> Arm:
    """Our first token: of a new prompt, or (``typed``) of a cached one with a letter added."""

    def run(request: Request) -> tuple[int, float]:
        one = request.with_sampling(max_tokens=1)
        engine.cache.clear()
        if typed:
            list(engine.complete(dataclasses.replace(one, prefix=one.prefix[:-1]), Deadline()))
        started = time.perf_counter()
        list(engine.complete(one, Deadline()))
        return 1, time.perf_counter() - started

    return run


def ar_arm(engine: Autoregressive, *, warm: bool) -> Arm:
    """Our decode loop, whole call.

    ``warm``: the prompt is in the cache, as after the first key in an editor.
    """
    engine.stops = frozenset()

    def run(request: Request) -> tuple[int, float]:
        if not warm:
            engine.cache.clear()
        started = time.perf_counter()
        tokens = [chunk.tokens for chunk in engine.complete(request, Deadline())][-1]
        return tokens, time.perf_counter() - started

    return run


def step_arm(engine: Diffusion, *, cached: bool) -> Arm:
    """One denoising step of a 16-slot canvas: on the cache, or with the context computed again each time."""

    def run(request: Request) -> tuple[int, float]:
        canvas = engine.open_canvas(request)
        assert isinstance(canvas, CachedCanvas)
        canvas.open(Deadline())
        slots = [engine.tokens.mask] * 16
        started = time.perf_counter()
        for _ in range(8):
            if not cached:
                canvas.cache.clear()
                canvas.open(Deadline())
            canvas.predict(slots)
        return 8, time.perf_counter() - started

    return run


def dllm_arm(engine: Diffusion) -> Arm:
    """A whole completion by denoising, prompt cached.

    Milliseconds per pass, everything around the passes included.
    """

    def run(request: Request) -> tuple[int, float]:
        list(engine.complete(request, Deadline()))
        started = time.perf_counter()
        passes = [chunk.forwards for chunk in engine.complete(request, Deadline())][-1]
        return passes, time.perf_counter() - started

    return run


def native_step_arm(loaded: Loaded, engine: Diffusion) -> Arm:
    """The same step by transformers' class alone: the whole sequence in one forward, as without any cache."""

    def run(request: Request) -> tuple[int, float]:
        canvas = engine.open_canvas(request)
        assert isinstance(canvas, CachedCanvas)
        context, slots = canvas.context, [engine.tokens.mask] * 16
        total = len(context) + len(slots)
        ids = torch.tensor([context + slots])
        mask = torch.ones(total, total, dtype=torch.bool).tril()
        mask[len(context) :] = True
        started = time.perf_counter()
        with torch.inference_mode():
            for _ in range(8):
                loaded.model(
                    input_ids=ids, attention_mask=mask[None, None], use_cache=False, logits_to_keep=16
                )
        return 8, time.perf_counter() - started

    return run


def measure(arms: dict[str, Arm], turns: int) -> dict[str, list[float]]:
    """Milliseconds per unit of every arm, turn by turn, order reversed every other turn."""
    results: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(turns + 1):
        for request in prompts():
            for name in sorted(arms, reverse=bool(turn % 2)):
                units, seconds = arms[name](request)
                if turn:  # the first turn warms up
                    results[name].append(1000 * seconds / units)
    return results


def main() -> None:
    """Run all arms, print the table, optionally write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODELS / "nano")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    card = get_card("nano").model_copy(update={"files": {}})
    loaded = load(card, args.model, torch.device("cpu"))
    engines = {}
    for network in ("native", "auto"):
        for rows in (1, 8):
            settings = Settings(network=network, decode_rows=rows, drafter="none", schedule="threshold")
            runtime = make_runtime(loaded, settings)
            assert runtime.cache is not None
            ar = make_ar(DraftContext(runtime, settings))
            dllm = make_dllm(DraftContext(runtime, settings))
            engines[network, rows] = (ar, dllm)
    ar, dllm = engines["auto", 8]
    tokens = measure(
        {
            "transformers generate": generate_arm(loaded, ar),
            "ours, native class, 1 row": ar_arm(engines["native", 1][0], warm=False),
            "ours, native class, 8 rows": ar_arm(engines["native", 8][0], warm=False),
            "ours, lean, 1 row": ar_arm(engines["auto", 1][0], warm=False),
            "ours, lean, 8 rows (default)": ar_arm(ar, warm=False),
            "ours, lean, 8 rows, prompt cached": ar_arm(ar, warm=True),
        },
        args.turns,
    )
    first = measure(
        {
            "transformers generate": generate_arm(loaded, ar, 1),
            "ours, native class": first_token_arm(engines["native", 1][0], typed=False),
            "ours, lean (default)": first_token_arm(ar, typed=False),
            "ours, lean, one letter typed": first_token_arm(ar, typed=True),
        },
        args.turns,
    )
    steps = measure(
        {
            "transformers forward, no cache": native_step_arm(loaded, dllm),
            "ours, no cache": step_arm(dllm, cached=False),
            "ours, native class, cached": step_arm(engines["native", 8][1], cached=True),
            "ours, lean, cached (default)": step_arm(dllm, cached=True),
            "ours, whole completions, per pass": dllm_arm(dllm),
        },
        args.turns,
    )
    machine = (
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch"
        f" {torch.__version__}"
    )
    print(f"{machine}; {TOKENS} tokens a call, prompts of {[len(ar.prompt(r)) for r in prompts()]} tokens\n")
    report("ms per token", tokens, "transformers generate")
    report("ms to the first token", first, "transformers generate")
    report("ms per denoising step", steps, "transformers forward, no cache")
    if args.out:
        args.out.write_text(
            json.dumps(
                {"machine": machine, "ms_per_token": tokens, "ms_to_first": first, "ms_per_step": steps},
                indent=1,
            )
        )


def report(title: str, results: dict[str, list[float]], base: str) -> None:
    """Medians, ranges, and how many times faster than ``base``, turn by turn."""
    print(f"| {title} | median | min | max | faster than {base} |\n|---|---|---|---|---|")
    for name, values in results.items():
        ratio = statistics.median(b / v for b, v in zip(results[base], values, strict=True))
        print(
            f"| {name} | {statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} |"
            f" {ratio:.2f}x |"
        )
    print()


if __name__ == "__main__":
    main()
