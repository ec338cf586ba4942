"""Replay recorded traces with calm settings: suggestions shown, that would have been accepted, typed over.

Usage: ``python -m bench.calm [TRACE ...] [--arms NAME ...] [--untimed] [--server WORDS]``.
In real time, all arms at once; ``--untimed``: each request is answered before the next key.
A suggestion counts as accepted where it pays: at least one key is saved by it (``ab.replay.keystrokes``).
Nobody accepts in a replay, so that each suggestion is typed or typed over.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fimserver.ab.items.traces import Trace, read_trace
from fimserver.ab.replay.keystrokes import KeystrokeTotals, totals
from fimserver.ab.replay.replay import replay

TRACES = Path(__file__).parent / "results" / "traces"
ARMS: dict[str, dict[str, Any]] = {
    "default": {},
    "calmDelayMs 400": {"calmDelayMs": 400},
    "shownPerMinute 6": {"shownPerMinute": 6},
    "both": {"calmDelayMs": 400, "shownPerMinute": 6},
    "minAcceptance 0.15": {"minAcceptance": 0.15},
    "minAcceptance 0.3": {"minAcceptance": 0.3},
    "all three": {"calmDelayMs": 400, "shownPerMinute": 6, "minAcceptance": 0.15},
}


def run(
    trace: Trace, options: dict[str, Any], command: list[str], folder: str, speed: float | None
) -> KeystrokeTotals:
    """Play one trace to a server of one arm; the host is shared by all arms in ``folder``."""
    env = {"XDG_RUNTIME_DIR": folder, "XDG_DATA_HOME": folder, "XDG_CACHE_HOME": folder}
    wanted = {"model": "ar", **options, "stats": False}
    return totals(replay(trace, command, speed=speed, env=env, options=wanted))


def row(name: str, found: list[KeystrokeTotals]) -> str:
    """A row of the table in Markdown."""
    shown = sum(each.shown for each in found)
    accepted = sum(each.accepted for each in found)
    saved = sum(each.saved_keys for each in found)
    requests = sum(each.requests for each in found)
    share = f"{accepted / shown:.0%}" if shown else "-"
    return f"| {name} | {requests} | {shown} | {accepted} | {shown - accepted} | {share} | {saved:.0f} |"


def main() -> None:
    """Replay and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traces", nargs="*", type=Path, default=sorted(TRACES.glob("*.jsonl")))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--untimed", action="store_true")
    parser.add_argument("--server", nargs="+", default=[sys.executable, "-m", "fimserver.cli"])
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    speed = None if args.untimed else 1.0
    traces = [read_trace(path) for path in args.traces]
    with tempfile.TemporaryDirectory(prefix="fim") as folder, ThreadPoolExecutor(len(args.arms)) as pool:
        Path(folder).chmod(0o700)
        command = [*args.server, "--idle-exit-minutes", "1"]
        jobs = {
            name: [pool.submit(run, trace, ARMS[name], command, folder, speed) for trace in traces]
            for name in args.arms
        }
        print("| settings | requests | shown | accepted | typed over | accepted share | keys saved |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for name, found in jobs.items():
            print(row(name, [job.result() for job in found]), flush=True)


if __name__ == "__main__":
    main()
