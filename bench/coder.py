"""A real coder on a CPU.

Ours against llama.cpp on the same GGUF file, prompts and threads, arms interleaved in one run.

    npm install --prefix PEERS node-llama-cpp     # outside the repository; prebuilt, MIT
    PEERS=PEERS XLLAMACPP=VENV/bin/python python -m bench.coder FILE.gguf [--threads 2] [--rounds 3]
        [--lengths 512 2048] [--kinds line body] [--arms "ours, plain" xllamacpp] [--out results.json]

XLLAMACPP is a Python with ``xllamacpp`` from PyPI. transformers is an arm only where ``--arms`` names it: it
needs a minute to load, and takes part in one round, at up to 1,024 tokens.

Every arm is a process that takes token ids and gives token ids. Cold first token: nothing of the prompt is
cached. Plain: one token a pass. Drafts: with ``ngram``, or (``ours``) with the drafters of the card.
Keystroke: one more token after a cached prompt, then a line of 12 tokens. Kinds: a token of a rest of a line,
of several lines and of a body, from prompts of 512 tokens. The floor is what the int8 products of this model
alone take, measured in the same run. ``--out`` is written after every round, so that a run that was cut off
leaves what it has measured.
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

from bench.coder_prompts import KINDS, HolePrompt, Prompts, cut
from fimserver.threads import prepare

LENGTHS = (256, 512, 1024, 2048)
CONTEXT_TOKENS = 2304
PLAIN_TOKENS, LINE_TOKENS = 32, 12
TOKENS_AT = 1024  # length at which tokens and keystrokes are timed
SLOW_ROUNDS, SLOW_LENGTH, SLOW_TOKENS = 1, 1024, 8  # of an arm that needs seconds for a prompt
SLOW = "transformers"


class CoderArm:
    """One process that answers requests in JSON lines."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        started = time.perf_counter()
        environ = dict(os.environ)
        if name.startswith("ours"):
            prepare(environ)  # as the command line does, before torch is imported
        self.process = subprocess.Popen(
            command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.ready = self._read()
        self.start_s = time.perf_counter() - started

    def ask(self, **request: Any) -> dict[str, Any]:
        """One answer: first_ms, whole_ms, made (ids), rss_mb."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Stop the process."""
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

    from fimserver.engine.engines import ModelPool
    from fimserver.engine.speculation.drafts import DecodeState
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
            asked,
            ids,
            request.get("prefix", ids),
            request.get("suffix", []),
            speculation.verifier.picker(asked),
            Deadline(),
        )
        state.hidden = cache.network.hidden[0, -1]
        speculation.begin(state, logits)
        first_ms = 1000 * (time.perf_counter() - started)
        while len(state.ids) < tokens:
            speculation.round(state, tokens - len(state.ids) - 1)
        whole_ms = 1000 * (time.perf_counter() - started)
        yield {"first_ms": first_ms, "whole_ms": whole_ms, "made": state.ids, "rss_mb": peak_mb()}
        speculation.observe(state, ended=True)  # as the engine does once the answer is sent


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


Found = dict[str, dict[str, list[float]]]  # milliseconds by arm and quantity


class Rounds:
    """Asks the arms in turns and collects what they took."""

    def __init__(self, arms: Sequence[CoderArm], lengths: Sequence[int], kinds: Sequence[str]) -> None:
        self.arms = arms
        self.lengths = lengths
        self.kinds = kinds
        self.found: Found = {arm.name: {} for arm in arms}

    def run(self, prompts: Prompts, number: int) -> None:
        """One round: every length, then every kind, on file ``number``; the order of arms turns around."""
        arms = [arm for arm in self.arms if arm.name != SLOW or number < SLOW_ROUNDS]
        arms = arms if number % 2 == 0 else arms[::-1]
        text = prompts.cold(number, max(LENGTHS))
        for length in self.lengths:
            for arm in arms:
                if arm.name != SLOW or length <= SLOW_LENGTH:
                    self._cold(arm, cut(text, length), length)
            if length == TOKENS_AT:
                self._keys(arms, prompts, number, cut(text, length))
        for kind in self.kinds:
            hole = prompts.hole(number, kind)
            for arm in arms:
                if arm.name != SLOW:
                    self._hole(arm, hole)

    def _cold(self, arm: CoderArm, prompt: list[int], length: int) -> None:
        plain = SLOW_TOKENS if arm.name == SLOW else PLAIN_TOKENS
        tokens = plain if length == TOKENS_AT else 1
        answer = arm.ask(ids=prompt, tokens=tokens)
        self._note(arm, f"first_{length}_ms", answer["first_ms"])
        self._note(arm, "rss_mb", answer["rss_mb"])
        if tokens > 1:
            self._note(arm, "token_ms", per_token(answer))

    def _keys(self, arms: Sequence[CoderArm], prompts: Prompts, number: int, prompt: list[int]) -> None:
        """Time one more token after the prompt: the first of the answer, and the next of the file."""
        for arm in (arm for arm in arms if arm.name != SLOW):
            sides = prompts.typed(prompt, 0)
            before = {"prefix": sides["prefix"][:-1], "suffix": sides["suffix"]}
            for quantity in ("keystroke_ms", "other_keystroke_ms"):
                made = arm.ask(ids=prompt, tokens=LINE_TOKENS, **before)["made"]
                token = made[0] if quantity == "keystroke_ms" else prompts.next_token(number)
                if quantity == "keystroke_ms" or token != made[0]:
                    typed = prompts.typed(prompt, token)
                    answer = arm.ask(**typed, tokens=LINE_TOKENS, keep=len(prompt))
                    self._note(arm, quantity, answer["whole_ms"])

    def _hole(self, arm: CoderArm, hole: HolePrompt) -> None:
        answer = arm.ask(ids=hole.ids, prefix=hole.prefix, suffix=hole.suffix, tokens=hole.tokens)
        self._note(arm, f"{hole.kind}_token_ms", per_token(answer))

    def _note(self, arm: CoderArm, quantity: str, value: float) -> None:
        print(f"{arm.name}, {quantity}: {value:.0f}", file=sys.stderr)
        self.found[arm.name].setdefault(quantity, []).append(value)


def per_token(answer: dict[str, Any]) -> float:
    """Milliseconds of a token after the first."""
    after: float = (answer["whole_ms"] - answer["first_ms"]) / max(1, len(answer["made"]) - 1)
    return after


def table(arms: Sequence[CoderArm], found: Found) -> str:
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
    for arm in arms:
        lines += floors(arm, found[arm.name])
    return "\n".join(lines)


def floors(arm: CoderArm, found: dict[str, list[float]]) -> list[str]:
    """Return the time of the products alone, and the arm's time at ``TOKENS_AT`` tokens relative to it."""
    floor = arm.ready.get("floor")
    if not floor:
        return []
    lines = [f"floor of {arm.name}: {floor}"]
    if found.get("token_ms"):
        first = statistics.median(found[f"first_{TOKENS_AT}_ms"])
        prefill = first / (TOKENS_AT / 64 * floor["rows_64_ms"])
        one = statistics.median(found["token_ms"]) / floor["rows_1_ms"]
        lines.append(f"{arm.name}: prefill {prefill:.2f} times the floor, a token {one:.2f} times")
    return lines


def commands(file: Path, threads: int) -> dict[str, list[str]]:
    """The arms that can run here, and the command of each."""
    ours = [sys.executable, "-m", "bench.coder", str(file), "--threads", str(threads), "--serve"]
    sizes = [str(file), str(threads), str(CONTEXT_TOKENS)]
    peers = str(Path(__file__).with_name("coder_peers.py"))
    found = {"ours, plain": [*ours, "none"], "ours, ngram": [*ours, "ngram"], "ours": [*ours, "auto"]}
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
    parser.add_argument("--rounds", type=int, default=3, help="files, at most 8")
    parser.add_argument("--lengths", type=int, nargs="*", default=LENGTHS, help="prompt tokens")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS), help="holes")
    parser.add_argument("--serve", default="", help="be our arm with this drafter")
    parser.add_argument("--arms", nargs="+", help="only these; default: all but transformers")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.serve:
        for answer in serve(options.file, options.threads, options.serve):
            print(json.dumps(answer), flush=True)
        return
    prompts = Prompts(options.file)
    found_arms = commands(options.file, options.threads)
    names = options.arms or [name for name in found_arms if name != "transformers"]
    if unknown := [name for name in names if name not in found_arms]:
        parser.error(f"no arm {unknown[0]!r} here; there are {', '.join(found_arms)}")
    arms = [CoderArm(name, found_arms[name]) for name in names]
    for arm in arms:
        arm.ask(ids=prompts.cold(0, 64), tokens=4)  # what is done once
    rounds = Rounds(arms, options.lengths, options.kinds)
    for number in range(options.rounds):
        rounds.run(prompts, number)
        if options.out:
            starts = {arm.name: arm.start_s for arm in arms}
            ready = {arm.name: arm.ready for arm in arms}
            options.out.write_text(
                json.dumps({"found": rounds.found, "start_s": starts, "ready": ready}, indent=1)
            )
    print(table(arms, rounds.found))
    for arm in arms:
        arm.close()


if __name__ == "__main__":
    main()
