"""A real coder on a CPU.

Ours against llama.cpp on the same GGUF file, prompts and threads, arms interleaved in one run.

    npm install --prefix PEERS node-llama-cpp     # outside the repository; prebuilt, MIT
    PEERS=PEERS XLLAMACPP=VENV/bin/python python -m bench.coder FILE.gguf [--threads 2] [--rounds 5]
        [--arms "ours, plain" xllamacpp] [--out results.json]

XLLAMACPP is a Python with ``xllamacpp`` from PyPI. transformers is an arm only where ``--arms`` names it: it
needs minutes to load.

Every arm is a process that takes token ids and gives token ids. Cold first token: nothing of the prompt is
cached. Plain: one token a pass. Drafts: with ``ngram``. Keystroke: one more token after a cached prompt, then
a line of 12 tokens. The floor is what the int8 products of this model alone take, measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

LENGTHS = (256, 512, 1024, 2048)
CONTEXT_TOKENS = 2304
PLAIN_TOKENS, LINE_TOKENS = 32, 12
MARKERS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")


class CoderArm:
    """One process that answers requests in JSON lines."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        started = time.perf_counter()
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ready = self._read()
        self.start_s = time.perf_counter() - started

    def ask(self, **request: Any) -> dict[str, Any]:
        """One answer: first_ms, whole_ms, made (ids), rss_mb."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(20)

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        value: dict[str, Any] = json.loads(self.process.stdout.readline())
        return value


def serve(file: Path, threads: int, drafter: str) -> Iterator[dict[str, Any]]:
    """Our arm: the engine's own cache and speculation, ids to ids.

    Yields answers, reads requests from stdin.
    """
    started = time.perf_counter()
    import torch

    from fimserver.engine.drafts import DecodeState
    from fimserver.engine.engines import ModelPool
    from fimserver.settings import Settings
    from fimserver.types import Deadline, Request, Sampling

    settings = Settings(
        device="cpu",
        threads=threads,
        ar_card=file.parent.name,
        models_dir=file.parent.parent,
        drafter=drafter,
    )
    pool = ModelPool(settings)
    engine: Any = pool.engine("ar")
    speculation, cache = engine.speculation, engine.cache
    yield {
        "load_ms": 1000 * (time.perf_counter() - started),
        "rss_mb": peak_mb(),
        "floor": floor(engine, torch),
    }
    for line in sys.stdin:
        request = json.loads(line)
        ids, tokens = request["ids"], request["tokens"]
        if not request.get("keep"):
            cache.clear()
        asked = Request("", "", sampling=Sampling(max_tokens=tokens))
        started = time.perf_counter()
        logits = cache.prefill(ids, Deadline(), want_logits=True)
        state = DecodeState(
            asked, ids, ids, request.get("suffix", []), speculation.verifier.picker(asked), Deadline()
        )
        state.hidden = cache.network.hidden[0, -1]
        speculation.begin(state, logits)
        first_ms = 1000 * (time.perf_counter() - started)
        while len(state.ids) < tokens:
            speculation.round(state, tokens - len(state.ids) - 1)
        whole_ms = 1000 * (time.perf_counter() - started)
        yield {"first_ms": first_ms, "whole_ms": whole_ms, "made": state.ids, "rss_mb": peak_mb()}


def floor(engine: Any, torch: Any) -> dict[str, float]:
    """Milliseconds of all products of a pass of 1 and of 64 rows, without anything between them."""
    network = engine.cache.network
    layers = [layer for layer in network.stack.layers if hasattr(layer.mlp, "gate_up")]
    products = [p for layer in layers for p in (layer.qkv, layer.out, layer.mlp.gate_up, layer.mlp.down)]
    if not products or not hasattr(products[0], "packed"):
        return {}
    result = {}
    for rows in (1, 64):
        times = []
        inputs = {
            p.packed.shape[0]: torch.zeros(rows, p.packed.shape[0], dtype=torch.uint8) for p in products
        }
        for _ in range(5):
            started = time.perf_counter()
            for p in products:
                p.integers(inputs[p.packed.shape[0]])
            if rows == 1:
                network.head.integers(torch.zeros(1, network.head.packed.shape[0], dtype=torch.uint8))
            times.append(1000 * (time.perf_counter() - started))
        result[f"rows_{rows}_ms"] = min(times)
    return result


def peak_mb() -> float:
    """Highest resident memory of this process so far."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def prompts(file: Path, count: int) -> list[list[int]]:
    """Token ids of ``count`` FIM prompts of the longest length, cut from the standard library.

    Shorter ones are their ends.
    """
    from fimserver.cards import get_card
    from fimserver.engine.vocabulary import Vocabulary
    from fimserver.engine.weights.formats import WEIGHTS

    card = get_card(file.parent.name)
    vocabulary = Vocabulary(WEIGHTS["gguf"].read(card, file.parent).tokenizer(), card)
    prefix, suffix, middle = (vocabulary.special(marker) for marker in MARKERS)
    folder = Path(os.__file__).parent
    made = []
    for name in ("argparse", "ast", "dataclasses", "functools", "inspect", "subprocess", "typing", "zipfile")[
        :count
    ]:
        text = vocabulary.encode((folder / f"{name}.py").read_text("utf-8"))
        at = len(text) // 2
        made.append(
            [prefix, *text[at - LENGTHS[-1] + 259 : at], suffix, *text[at + 30 : at + 286], middle][
                -LENGTHS[-1] :
            ]
        )
    return made


def cut(prompt: list[int], length: int) -> list[int]:
    """The same cursor with less before it: the marker of the prefix, then the prompt's end."""
    return [prompt[0], *prompt[len(prompt) - length + 1 :]]


def run(
    arms: list[CoderArm], texts: list[list[int]], lengths: Sequence[int]
) -> dict[str, dict[str, list[float]]]:
    """Milliseconds by arm and quantity; the arms take turns within each prompt."""
    found: dict[str, dict[str, list[float]]] = {arm.name: {} for arm in arms}
    for number, text in enumerate(texts):
        order = arms if number % 2 == 0 else arms[::-1]
        for length in lengths:
            prompt = cut(text, length)
            for arm in order:
                tokens = PLAIN_TOKENS if length == 1024 else 1
                answer = arm.ask(ids=prompt, tokens=tokens)
                print(f"{arm.name}, {length} tokens: {answer['first_ms']:.0f} ms", file=sys.stderr)
                found[arm.name].setdefault(f"first_{length}_ms", []).append(answer["first_ms"])
                if tokens > 1:
                    each = (answer["whole_ms"] - answer["first_ms"]) / (len(answer["made"]) - 1)
                    found[arm.name].setdefault("token_ms", []).append(each)
                    typed = arm.ask(ids=[*prompt, answer["made"][0]], tokens=LINE_TOKENS, keep=length)
                    found[arm.name].setdefault("keystroke_ms", []).append(typed["whole_ms"])
                found[arm.name].setdefault("rss_mb", []).append(answer["rss_mb"])
    return found


def table(arms: list[CoderArm], found: dict[str, dict[str, list[float]]]) -> str:
    """Medians with the range of the middle half, one line a quantity."""
    names = list(dict.fromkeys(key for values in found.values() for key in values))
    lines = [" | ".join(["quantity", *(arm.name for arm in arms)]), " | ".join(["---"] * (len(arms) + 1))]
    lines.append(" | ".join(["start of the process, s", *(f"{arm.start_s:.1f}" for arm in arms)]))
    for name in names:
        cells = []
        for arm in arms:
            values = sorted(found[arm.name].get(name, [])) or [float("nan")]
            low, high = values[len(values) // 4], values[-1 - len(values) // 4]
            cells.append(
                f"{statistics.median(values):.0f} ({low:.0f}-{high:.0f})"
                if "_ms" in name
                else f"{max(values):.0f}"
            )
        lines.append(" | ".join([name, *cells]))
    lines += [f"floor of {arm.name}: {arm.ready['floor']}" for arm in arms if arm.ready.get("floor")]
    return "\n".join(lines)


def commands(file: Path, threads: int) -> dict[str, list[str]]:
    """The arms that can run here, and the command of each."""
    ours = [sys.executable, "-m", "bench.coder", str(file), "--threads", str(threads), "--serve"]
    sizes = [str(file), str(threads), str(CONTEXT_TOKENS)]
    peers = str(Path(__file__).with_name("coder_peers.py"))
    found = {"ours, plain": [*ours, "none"], "ours, ngram": [*ours, "ngram"]}
    if "PEERS" in os.environ:
        found["llama.cpp"] = ["node", str(Path(__file__).with_name("coder_llama.mjs")), *sizes]
    if "XLLAMACPP" in os.environ:
        found["xllamacpp"] = [os.environ["XLLAMACPP"], peers, "xllamacpp", *sizes]
    return found | {"transformers": [sys.executable, peers, "transformers", *sizes]}


def main() -> None:
    """Run all arms and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="MODELS/CARD/FILE.gguf")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=4, help="prompts, at most 8")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="prompt tokens")
    parser.add_argument("--serve", default="", help="be our arm with this drafter")
    parser.add_argument("--arms", nargs="+", help="only these; default: all but transformers")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.serve:
        for answer in serve(options.file, options.threads, options.serve):
            print(json.dumps(answer), flush=True)
        return
    texts = prompts(options.file, options.rounds)
    found_arms = commands(options.file, options.threads)
    names = options.arms or [name for name in found_arms if name != "transformers"]
    if unknown := [name for name in names if name not in found_arms]:
        parser.error(f"no arm {unknown[0]!r} here; there are {', '.join(found_arms)}")
    arms = [CoderArm(name, found_arms[name]) for name in names]
    for arm in arms:
        arm.ask(ids=texts[0][:64], tokens=4)  # what is done once
    found = run(arms, texts, options.lengths)
    print(table(arms, found))
    if options.out:
        options.out.write_text(
            json.dumps({"found": found, "start_s": {arm.name: arm.start_s for arm in arms}}, indent=1)
        )
    for arm in arms:
        arm.close()


if __name__ == "__main__":
    main()
