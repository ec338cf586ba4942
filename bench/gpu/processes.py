"""Runs the groups of steps, each in a process of its own with a time limit, and prints the table of all.

An illegal access or a hang then ends one group alone. The next process imports its libraries while the one
before it measures, and waits for its turn.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.gpu.figures import Figure, Sheet

GROUPS = {  # the most seconds that each may take, in order of importance
    "small": 60.0,
    "coder": 75.0,
    "large": 105.0,
    "middle": 30.0,
    "compiled": 240.0,
    "quantised": 60.0,
}
LEAST_S = 12.0  # a group is not begun with less time
MACHINE = "machine.txt"
UNFIT = 2  # exit status where the machine lacks something


@dataclass(frozen=True)
class Plan:
    """What is asked for. ``group``: the steps of this process; empty: it starts the others."""

    out: Path
    minutes: float
    device: str
    packed: Path | None = None
    adapter: Path | None = None
    toy: bool = False
    only: str = ""
    here: bool = False
    group: str = ""


def run(plan: Plan) -> int:
    """Measure, and print the table; returns 0 if no step failed."""
    until = time.monotonic() + 60 * plan.minutes
    if plan.group:
        return _group(plan, (plan.group,), waits=True)
    Sheet(plan.out)
    (plan.out / MACHINE).unlink(missing_ok=True)
    failed = _group(plan, tuple(GROUPS), waits=False) if plan.here else _all(plan, until)
    if failed == UNFIT:
        return UNFIT
    _print(plan)
    return int(failed > 0)


def _group(plan: Plan, names: Sequence[str], *, waits: bool) -> int:
    """Run groups in this process; with ``waits``, when standard input has the seconds that they may take."""
    from bench.gpu import steps  # torch and transformers, which are known to be there

    seconds = 60 * plan.minutes
    if waits:
        steps.prepare(plan, names)
        line = sys.stdin.readline()
        if not line:
            return 0
        seconds = float(line)
    return steps.measure(plan, names, time.monotonic() + seconds)


def _all(plan: Plan, until: float) -> int:
    """Run each group in its own process; returns how many failed, or ``UNFIT``."""
    names = list(GROUPS)
    waiting = [_start(plan, names[0])]
    failed = 0
    for number, name in enumerate(names):
        child = waiting.pop()
        left = until - time.monotonic()
        if left < LEAST_S:
            _end(child)
            rows = (Figure(f"group {late}", None, "", note="no time left") for late in names[number:])
            Sheet(plan.out, resume=True).add(rows)
            break
        seconds = left if plan.toy else min(left, GROUPS[name])
        _begin(child, seconds)
        waiting += [_start(plan, following) for following in names[number + 1 : number + 2]]
        status = _wait(plan, name, child, seconds)
        if status == UNFIT:
            for each in waiting:
                _end(each)
            return UNFIT
        failed += status != 0
    return failed


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.stdin:
        child.stdin.close()
    child.kill()
    child.wait()


def _start(plan: Plan, group: str) -> subprocess.Popen[bytes]:
    """Start the process of a group, which waits until it may begin."""
    command = [sys.executable, "-m", "bench.gpu", "--out", str(plan.out), "--device", plan.device]
    command += ["--group", group, "--only", plan.only, *(["--toy"] if plan.toy else [])]
    for name, path in (("--packed", plan.packed), ("--adapter", plan.adapter)):
        command += [name, str(path)] if path else []
    return subprocess.Popen(command, stdin=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"})


def _begin(child: subprocess.Popen[bytes], seconds: float) -> None:
    assert child.stdin
    try:
        child.stdin.write(f"{seconds}\n".encode())
        child.stdin.close()
    except BrokenPipeError:  # it has ended: its status says how
        pass


def _wait(plan: Plan, name: str, child: subprocess.Popen[bytes], seconds: float) -> int:
    """Wait for a process until its time is spent; returns its exit status, 1 if it had to be ended."""
    late = threading.Event()

    def end() -> None:
        late.set()
        child.kill()

    timer = threading.Timer(seconds, end)
    timer.start()
    status = child.wait()
    timer.cancel()
    if status in {0, 1, UNFIT}:
        return status
    why = f"ended after {seconds:.0f} s" if late.is_set() else f"failed: exit status {status}"
    Sheet(plan.out, resume=True).add([Figure(f"group {name}", None, "", note=why)])
    return 1


def _print(plan: Plan) -> None:
    machine = plan.out / MACHINE
    about = machine.read_text("utf-8").strip() if machine.exists() else "no step began"
    table = f"{about}, {'toy sizes' if plan.toy else 'random weights'}\n\n"
    table += Sheet(plan.out, resume=True).table()
    machine.unlink(missing_ok=True)
    (plan.out / "figures.md").write_text(table, "utf-8")
    print("\n" + table)
