"""The spin of OpenMP's threads, changed while they are in use."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from fimserver.engine.forward.openmp import BlocktimeSpin, GnuSpin, find_spin
from fimserver.threads import BLOCKTIME_MS, LONG_BLOCKTIME_MS, LONG_SPINS, allowed_cpus, has_gnu_openmp

ROOT = Path(__file__).parents[3]
gnu = pytest.mark.skipif(
    not has_gnu_openmp() or allowed_cpus() < 2 or not sys.platform.startswith("linux"),
    reason="needs GNU OpenMP and two processors",
)
SPENT = """
import time, torch
from fimserver.engine.forward.openmp import find_spin

torch.set_num_threads(2)
numbers = torch.zeros(1 << 17)

def spent_s():
    "Processor time of threads that have nothing to do but to wait for more work."
    numbers.add_(1)
    before = time.process_time()
    for _ in range(20):
        numbers.add_(1)
        time.sleep(0.05)
    return time.process_time() - before

spin = find_spin()
found = []
for brief in (False, True, False):
    spin.set_brief(brief)
    time.sleep(0.5)
    found.append(spent_s())
print(*found)
"""


@gnu
def test_idle_threads_spin_long_briefly_and_long_again():
    done = subprocess.run(
        [sys.executable, "-c", SPENT],
        capture_output=True,
        text=True,
        check=True,
        env=clean() | {"PYTHONPATH": str(ROOT), "GOMP_SPINCOUNT": str(LONG_SPINS)},
    )
    long, brief, long_again = map(float, done.stdout.split())
    assert brief < long / 2
    assert brief < long_again / 2


def clean():
    return {name: text for name, text in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}


@gnu
def test_the_surplus_of_threads_comes_once_and_goes():
    spin = find_spin()
    assert isinstance(spin, GnuSpin)
    before = threads()
    own = 1 + allowed_cpus()  # the parked one, and its pool
    for _ in range(2):
        spin.set_brief(True)
    until(lambda: len(threads() - before) >= own)
    begun = threads() - before
    spin.set_brief(False)
    until(lambda: len(begun & threads()) <= len(begun) - own)
    assert not any(thread.name == "parked" for thread in threading.enumerate())


@gnu
def test_no_thread_more_is_no_failure(monkeypatch):
    def start(_):
        raise RuntimeError("can't start new thread")

    spin = find_spin()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        spin.set_brief(True)
    before = threads()
    spin.set_brief(True)  # tried again
    until(lambda: threads() - before)
    spin.set_brief(False)


def threads():
    """Their numbers."""
    return set(os.listdir("/proc/self/task"))  # noqa: PTH208


def until(true, limit_s=60.0):
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_other_kinds_of_openmp_are_given_milliseconds():
    given = []

    def kmp_set_blocktime(ms):
        given.append(ms)

    spin = find_spin(SimpleNamespace(kmp_set_blocktime=kmp_set_blocktime, GOMP_parallel=print))
    assert isinstance(spin, BlocktimeSpin)
    for brief in (True, False):
        spin.set_brief(brief)
    assert given == [BLOCKTIME_MS, LONG_BLOCKTIME_MS]


def test_an_unknown_openmp_cannot_be_switched():
    assert find_spin(SimpleNamespace()) is None
