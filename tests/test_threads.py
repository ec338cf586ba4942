"""How many threads compute and how long they wait, as set before torch is loaded."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fimserver import threads
from fimserver.threads import allowed_cpus, cgroup_cpus, has_gnu_openmp, is_prepared, prepare

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _four_processors(monkeypatch):
    monkeypatch.setattr(threads, "allowed_cpus", lambda: 4)
    monkeypatch.setattr(threads, "cgroup_cpus", lambda: 0)


@pytest.mark.parametrize(("is_gnu", "spins"), [(True, threads.LONG_SPINS), (False, threads.SPINS)])
def test_the_spin_is_bounded_where_it_cannot_be_switched(monkeypatch, is_gnu, spins):
    monkeypatch.setattr(threads, "has_gnu_openmp", lambda: is_gnu)
    environ = {}
    prepare(environ)
    assert environ == {"GOMP_SPINCOUNT": str(spins), "KMP_BLOCKTIME": "0"}
    prepare(environ)  # of a child
    assert is_prepared(environ, spins)


def test_the_openmp_of_torch_is_found_without_torch(monkeypatch, tmp_path):
    (tmp_path / "lib").mkdir()
    torch = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: torch if name == "torch" else None)
    assert not threads.has_gnu_openmp()
    (tmp_path / "lib" / "libgomp-a34b3233.so.1").touch()
    assert threads.has_gnu_openmp()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert not threads.has_gnu_openmp()


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_what_the_user_says_of_waiting_holds(name):
    environ = {name: "7"}
    prepare(environ)
    assert environ == {name: "7"}
    assert not any(is_prepared(environ, spins) for spins in (threads.SPINS, threads.LONG_SPINS))


@pytest.mark.parametrize(("quota", "count"), [(0, None), (1, "1"), (3, "3"), (4, None), (16, None)])
def test_a_cgroup_bounds_the_threads(monkeypatch, quota, count):
    monkeypatch.setattr(threads, "cgroup_cpus", lambda: quota)
    monkeypatch.setattr(threads, "has_gnu_openmp", lambda: True)
    environ = {}
    prepare(environ)
    assert environ.get("OMP_NUM_THREADS") == count
    assert is_prepared(environ, threads.SPINS if count else threads.LONG_SPINS)
    environ = {"OMP_NUM_THREADS": "9"}
    prepare(environ)
    assert environ["OMP_NUM_THREADS"] == "9"


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 0),
        ({"cpu.max": "max 100000\n"}, 0),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"user/app/cpu.max": "max 100000\n", "user/cpu.max": "300000 100000\n"}, 3),
        ({"user/app/cpu.max": "100000 100000\n", "user/cpu.max": "300000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu.max": "nonsense"}, 0),
        ({"cpu.max": "1 0"}, 0),
        ({"elsewhere/cpu.max": "100000 100000\n"}, 0),
    ],
)
def test_the_limit_of_a_cgroup(tmp_path, files, cpus):
    root, own = tmp_path / "cgroup", tmp_path / "own"
    root.mkdir()
    own.write_text("1:cpu:/x\n0::/user/app\n")
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    assert cgroup_cpus(own, root) == cpus


def test_where_there_are_no_cgroups_there_is_no_limit(tmp_path):
    assert cgroup_cpus(tmp_path / "no", tmp_path / "none") == 0


@pytest.mark.parametrize("command", [["models"], ["host", "--help"], ["complete", "--help"]])
def test_every_command_sets_it_before_torch_is_loaded(command):
    code = f"""
import os, sys
from click.testing import CliRunner
from fimserver import cli
assert "torch" not in sys.modules
CliRunner().invoke(cli.main, {command!r})
print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("KMP_BLOCKTIME"))
"""
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=clean | {"PYTHONPATH": str(ROOT)},
    )
    limited = 0 < cgroup_cpus() < allowed_cpus()
    spins = threads.LONG_SPINS if has_gnu_openmp() and not limited else threads.SPINS
    assert done.stdout.split() == [str(spins), str(threads.BLOCKTIME_MS)]
