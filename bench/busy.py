"""Milliseconds per completion while other processes compute, for several ways of waiting between threads.

Usage: ``python -m bench.busy [--card NAME] [--routes ar] [--fast] [--requests N] [--prompt-tokens N]
[--competitors 0 1 2 4] [--alone-s S] [--busy-s S] [--ways default ours] [--llama FILE.gguf]
[--out FILE.json]``; a coder without a canvas has the ar route alone.

Each way has its own process, which loads the model once; they alternate, request by request, so that other
work on the machine affects all of them alike. Competitors are processes that only count. Requests are
holes in our own source, each with an empty cache. ``--llama``, with node-llama-cpp in the folder PEERS (see
``bench.coder``), adds llama.cpp: it gets the token ids of our prompt and writes as many tokens as we did.
``--fast``: three requests of at most 256 prompt tokens, which write at most 24.

The requests are repeated for a minute without competitors (``--alone-s``) and for 15 seconds with each number
of them (``--busy-s``). Two ratios follow, each a geometric mean over the same requests with its 95 %
interval: ours to the default without competitors, and each way with competitors to itself without.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

SPINS = (0, 100, 300, 1000, 3000, 10_000, 30_000)
WAYS = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"},
    **{f"spin {count}": {"GOMP_SPINCOUNT": str(count)} for count in SPINS},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "ours": {"BENCH_OURS": "1"},
}
SETTLE_S = 0.5
SPIN_ENDS_S = 0.02  # after an answer; the threads of another way would still be on the processors
LLAMA = "llama.cpp"
FAST = {"requests": 3, "prompt_tokens": 256}
LLAMA_CONTEXT = 4096
ALONE_S = 60.0
BUSY_S = 15.0


@contextmanager
def competitors(count):
    """Run ``count`` busy processes."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    time.sleep(SETTLE_S)
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


class Worker:
    """A process that answers requests with one way of waiting between threads."""

    def __init__(self, command, env):
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("OMP_", "GOMP_", "KMP_"))
        }
        self._process = subprocess.Popen(
            command, env=clean | env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def read(self):
        """Read one line of the process; the first one comes when the model is loaded."""
        return json.loads(self._process.stdout.readline())

    def answer(self, request):
        time.sleep(SPIN_ENDS_S)
        self._process.stdin.write(f"{json.dumps(request)}\n")
        self._process.stdin.flush()
        return self.read()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def commands(args):
    """Command and environment of each way; those of ours first, as llama.cpp is asked for what they wrote."""
    own = [sys.executable, "-m", "bench.busy", "--worker", "--card", args.card, "--routes", *args.routes]
    own += ["--prompt-tokens", str(args.prompt_tokens)]
    found = {way: (own, WAYS[way]) for way in args.ways}
    if args.llama:
        script = str(Path(__file__).with_name("coder_llama.mjs"))
        found[LLAMA] = (["node", script, str(args.llama), str(os.cpu_count()), str(LLAMA_CONTEXT)], {})
    return found


def measure(args):
    """Rows of way, competitors, route, p50 and p95 in milliseconds; the times of each by request."""
    rows = []
    found = {}
    with ExitStack() as stack:
        workers = {way: stack.enter_context(Worker(*how)) for way, how in commands(args).items()}
        ready = {way: worker.read() for way, worker in workers.items()}
        requests = min(args.requests, *(ready[way]["requests"] for way in args.ways))
        if LLAMA in workers:
            workers[LLAMA].answer({"ids": list(range(64)), "tokens": 2})  # what is done once
        for count in args.competitors:
            with competitors(count):
                times = timed(workers, requests, args.busy_s if count else args.alone_s)
            rows += [row(way, count, route, ms) for (way, route), ms in times.items()]
            found |= {(way, count, route): ms for (way, route), ms in times.items()}
    return rows, found


def timed(workers, requests, least_s):
    """Milliseconds of each way and route; whole rounds of the requests, for so many seconds at least."""
    times = {}
    rounds = 0
    end = time.perf_counter() + least_s
    while not rounds or time.perf_counter() < end:
        for number in range(requests):
            for way, route, ms in turn(workers, number, backwards=bool((rounds + number) % 2)):
                times.setdefault((way, route), []).append(ms)
        rounds += 1
    return times


def ratios(found):
    """Rows of name, route, and the ratio with its bounds, printed.

    ``found``: milliseconds by way, competitors and route, of the same requests in the same order.
    """
    from fimserver.ab.analysis.statistics import bootstrap, geometric_ratio

    asked = {("ours / default, alone", "ours", 0, "default", 0)}
    asked |= {(f"{way}, {count} competitors / alone", way, count, way, 0) for way, count, _ in found if count}
    rows = []
    for name, way, count, base, base_count in sorted(asked):
        for route in sorted({route for _, _, route in found}):
            ms, base_ms = found.get((way, count, route)), found.get((base, base_count, route))
            if ms and base_ms:
                pairs = list(zip(ms, base_ms, strict=False))  # alone there are more rounds of the same
                drawn = bootstrap([str(pair) for pair in range(len(pairs))])
                ratio = geometric_ratio(*zip(*pairs, strict=True), drawn)
                rows.append(said(name, route, ratio, len(pairs)))
    return rows


def said(name, route, ratio, pairs):
    """One row of the ratios, printed. Fewer than six pairs have no interval."""
    low, high = (None if math.isnan(bound) else round(bound, 3) for bound in (ratio.low, ratio.high))
    bounds = "" if low is None else f"[{low:.2f}, {high:.2f}] "
    print(f"{name:32} {route:5} {ratio.value:5.2f} {bounds}of {pairs} pairs", flush=True)
    value = round(ratio.value, 3)
    return {"ratio": name, "route": route, "value": value, "low": low, "high": high, "pairs": pairs}


def turn(workers, number, *, backwards=False):
    """One request to each way: way, route, milliseconds.

    llama.cpp is the last, as it writes as much as ours wrote.
    """
    same = {}
    own = [way for way in workers if way != LLAMA]
    order = [*(reversed(own) if backwards else own), *(way for way in workers if way == LLAMA)]
    for way in order:
        worker = workers[way]
        if way == LLAMA:
            yield way, "ar", worker.answer(same)["whole_ms"]
            continue
        answer = worker.answer(number)
        same = answer["same"]
        yield from ((way, route, ms) for route, ms in answer["ms"].items())


def row(way, count, route, ms):
    """One row of the table, printed."""
    ordered = sorted(ms)
    p50, p95 = statistics.median(ordered), ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))]
    print(f"{way:12} {count} {route:5} p50 {p50:7.1f}  p95 {p95:7.1f}", flush=True)
    return {
        "way": way,
        "competitors": count,
        "route": route,
        "p50_ms": round(p50, 1),
        "p95_ms": round(p95, 1),
    }


def work(args):
    """Answer requests as they are named on stdin: milliseconds, and the same work as token ids."""
    if os.environ.get("BENCH_OURS"):
        from fimserver.threads import prepare

        prepare()
    from fimserver.engine.engines import ModelPool
    from fimserver.host.calibrate import samples
    from fimserver.settings import Settings
    from fimserver.types import Deadline

    settings = Settings(
        ar_card=args.card, dllm_card=args.card, device="cpu", prompt_tokens=args.prompt_tokens
    )
    models = ModelPool(settings)
    requests = samples()

    def run(route, request):
        models.clear()
        tokens = 0
        started = time.perf_counter()
        for chunk in models.engine(route).complete(request, Deadline.of_ms(120_000)):
            tokens = chunk.tokens
        return (time.perf_counter() - started) * 1000, tokens

    for route in args.routes:
        run(route, requests[0])
    print(json.dumps({"requests": len(requests)}), flush=True)
    for line in sys.stdin:
        request = requests[int(line)]
        found = {route: run(route, request) for route in args.routes}
        same = {}
        if "ar" in found:
            same = {"ids": models.engine("ar").prompt(request), "tokens": max(1, found["ar"][1])}
        print(json.dumps({"ms": {route: ms for route, (ms, _) in found.items()}, "same": same}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--card", default="nano")
    parser.add_argument("--routes", nargs="+", choices=["dllm", "ar"], default=["dllm", "ar"])
    parser.add_argument("--requests", type=int, default=9)
    parser.add_argument("--prompt-tokens", type=int, default=0)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--llama", type=Path, help="GGUF file of the card, for llama.cpp")
    parser.add_argument("--competitors", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--ways", nargs="+", default=["default", "ours"], choices=WAYS)
    parser.add_argument("--alone-s", type=float, default=ALONE_S, help="seconds without competitors")
    parser.add_argument("--busy-s", type=float, default=BUSY_S, help="seconds with each number of them")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args)
        return
    if args.fast:
        parser.set_defaults(**FAST)
        args = parser.parse_args()
    rows, found = measure(args)
    rows += ratios(found)
    if args.out:
        machine = {"processor": platform.processor() or platform.machine(), "cpus": os.cpu_count()}
        args.out.write_text(
            json.dumps({"machine": machine, "card": args.card, "rows": rows}, indent=1) + "\n", "utf-8"
        )


if __name__ == "__main__":
    main()
