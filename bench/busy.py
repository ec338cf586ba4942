"""Milliseconds per completion while other processes compute, for several ways of waiting between threads.

Usage: ``python -m bench.busy [--card NAME] [--routes ar] [--requests N] [--competitors 0 1 2 4]
[--ways default ours] [--out FILE.json]``; a coder without a canvas has the ar route alone.
Each way has a process of its own, which loads the model once; they take turns, request by request, so that
whatever else the machine does meets all of them. Competitors are processes that only count. Requests are
holes in our own source, each with an empty cache.
"""

from __future__ import annotations

import argparse
import json
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


@contextmanager
def competitors(count):
    """So many busy processes."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    time.sleep(SETTLE_S)
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


class Worker:
    """A process that answers requests in one way of waiting."""

    def __init__(self, card, way, routes):
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("OMP_", "GOMP_", "KMP_"))
        }
        command = [sys.executable, "-m", "bench.busy", "--worker", card, "--routes", *routes]
        self._process = subprocess.Popen(
            command, env=clean | WAYS[way], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ready(self):
        """The number of requests, when the model is loaded."""
        return int(self._process.stdout.readline())

    def answer(self, number):
        """Milliseconds of one request, by route."""
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def measure(card, ways, counts, routes, most):
    """Rows of way, competitors, route, p50 and p95 in milliseconds."""
    rows = []
    with ExitStack() as stack:
        workers = {way: stack.enter_context(Worker(card, way, routes)) for way in ways}
        requests = min(most, *(worker.ready() for worker in workers.values()))
        for count in counts:
            times = {}
            with competitors(count):
                for number in range(requests):
                    for way, worker in workers.items():
                        for route, ms in worker.answer(number).items():
                            times.setdefault((way, route), []).append(ms)
            rows += [row(way, count, route, ms) for (way, route), ms in times.items()]
    return rows


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


def work(card, routes):
    """Answer requests as they are named on stdin."""
    if os.environ.get("BENCH_OURS"):
        from fimserver.threads import prepare

        prepare()
    from fimserver.engine.engines import ModelPool
    from fimserver.host.calibrate import samples
    from fimserver.settings import Settings
    from fimserver.types import Deadline

    models = ModelPool(Settings(ar_card=card, dllm_card=card, device="cpu"))
    requests = samples()

    def run(route, request):
        models.clear()
        started = time.perf_counter()
        for _ in models.engine(route).complete(request, Deadline.of_ms(30_000)):
            pass
        return (time.perf_counter() - started) * 1000

    for route in routes:
        run(route, requests[0])
    print(len(requests), flush=True)
    for line in sys.stdin:
        print(json.dumps({route: run(route, requests[int(line)]) for route in routes}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--card", default="nano")
    parser.add_argument("--routes", nargs="+", choices=["dllm", "ar"], default=["dllm", "ar"])
    parser.add_argument("--requests", type=int, default=9)
    parser.add_argument("--competitors", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--ways", nargs="+", default=["default", "ours"], choices=WAYS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", metavar="CARD", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.routes)
        return
    rows = measure(args.card, args.ways, args.competitors, args.routes, args.requests)
    if args.out:
        machine = {"processor": platform.processor() or platform.machine(), "cpus": os.cpu_count()}
        args.out.write_text(
            json.dumps({"machine": machine, "card": args.card, "rows": rows}, indent=1) + "\n", "utf-8"
        )


if __name__ == "__main__":
    main()
