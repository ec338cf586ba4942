"""The command that measures a GPU: every step of it at toy sizes, with torch and transformers alone."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from bench.gpu import needs, quantised
from bench.gpu.__main__ import main
from bench.gpu.clock import waits
from bench.gpu.figures import Figure, Sheet
from bench.gpu.setup import Bench
from bench.gpu.shapes import QWEN_7B, QWEN_15B, TOY, Ceilings
from bench.gpu.steps import SMALL, Step, _measured, steps, unfit

ROOT = Path(__file__).parents[2]
# Refuses whatever our own files import beside the standard library, torch, transformers and what that requires.
ALONE = """
import sys

ALLOWED = {"torch", "transformers", "safetensors", "fimserver", "bench", *sys.stdlib_module_names}

class Alone:
    def find_spec(self, name, path=None, target=None):
        frame = sys._getframe(1)
        while "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        ours = "/fimserver/" in frame.f_code.co_filename or "/bench/gpu/" in frame.f_code.co_filename
        if ours and name.partition(".")[0] not in ALLOWED:
            raise ModuleNotFoundError(f"{frame.f_code.co_filename} imports {name}", name=name)

sys.meta_path.insert(0, Alone())
from bench.gpu.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, "-c", ALONE, "--toy", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout, json.loads((out / "figures.json").read_text()), out


def test_every_step_runs_with_torch_and_transformers_alone(run):
    _, rows, _ = run
    assert all(set(row) == {"name", "value", "unit", "floor", "ratio", "note"} for row in rows)
    names = [row["name"] for row in rows]
    assert len(set(names)) == len(names)
    unmeasured = {row["name"]: row["note"] for row in rows if row["value"] is None}
    torchao = {"toy wide int8": "needs torchao"}  # the one other library, which a run may lack
    assert {name: unmeasured.pop(name) for name in torchao} == torchao
    assert set(unmeasured.values()) == {"needs CUDA"}
    for wanted in (
        "copy bandwidth",
        "greedy: texts equal with drafts",
        "keyed: texts equal cold and warm",
        "first token cold",
        "first token warm",
        "ms a token, graphs",
        "ms a token, no graphs",
        "pass of 1x32 rows",
        "transformers generate",
        "static cache",
        "native",
        "attention as two products",
        "rows, compiled",
        "cached step, graphs",
        "cached step, no graphs",
        "middle of 16, 2 a step",
        "host waits in a round",
        "host waits in a denoising step",
        "cancel to idle",
        "peak memory",
        "running out of memory",
    ):
        assert any(wanted in name for name in names), wanted


def test_texts_are_the_same_whatever_is_drafted_and_cached(run):
    _, rows, _ = run
    equal = [row for row in rows if "texts equal" in row["name"] or "memory, equal" in row["name"]]
    assert len(equal) == 9
    assert all(row["value"] == 1 for row in equal)


def test_every_time_has_its_floor(run):
    _, rows, _ = run
    times = [row for row in rows if row["unit"] == "ms"]
    assert len(times) > 40
    assert all(row["floor"] > 0 for row in times)
    assert all(row["ratio"] is not None for row in times)


def test_the_table_comes_last_and_is_kept(run):
    printed, rows, out = run
    table = (out / "figures.md").read_text()
    assert printed.endswith(table + "\n")
    assert table.count("\n| ") == len(rows) + 1


def test_a_run_that_is_cut_off_still_counts(tmp_path):
    sheet = Sheet(tmp_path)

    def cut():
        yield Figure("a", 2.0, "ms", 1.0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sheet.add(cut())
    assert [row["name"] for row in json.loads((tmp_path / "figures.json").read_text())] == ["a"]


def bench(tmp_path, until=1e12):
    return Bench(torch.device("cpu"), SMALL, Sheet(tmp_path), until)


def test_a_step_that_fails_is_a_row_and_the_others_go_on(tmp_path):
    def fails(_bench):
        yield Figure("half", 1.0, "ms")
        raise RuntimeError("no such kernel\nand a long trace")

    made = bench(tmp_path)
    assert not _measured(made, Step("broken", fails, 0))
    rows = [figure.row() for figure in made.sheet.figures]
    assert [row["name"] for row in rows] == ["half", "broken"]
    assert rows[1]["note"] == "failed: RuntimeError: no such kernel"


def test_no_step_starts_that_does_not_fit_the_time(tmp_path):
    made = bench(tmp_path, until=0.0)
    left_out = [step.name for step in steps(SMALL) if unfit(made, step)]
    assert left_out == [step.name for step in steps(SMALL)]
    assert unfit(bench(tmp_path), steps(SMALL)[0]) == ""


@pytest.mark.parametrize("arithmetic", ["int8", "int4"])
def test_quantised_weights_are_measured_where_they_can_be(arithmetic, tmp_path, monkeypatch):
    """The products of a stand-in for torchao: every figure comes, and the plain model is made anew after it."""
    done = []
    monkeypatch.setattr(quantised, "WEIGHT_BYTES", {arithmetic: quantised.WEIGHT_BYTES[arithmetic]})
    monkeypatch.setattr(quantised, "quantise", lambda model, name, device: done.append((model, name, device)))
    made = bench(tmp_path)
    with torch.no_grad():
        figures = list(quantised.measure(made, TOY))
    assert [(name, device.type) for _, name, device in done] == [(arithmetic, "cpu")]
    assert [figure.name for figure in figures] == [
        f"toy {arithmetic} weights in memory",
        f"toy {arithmetic} ms a token, graphs",
        f"toy {arithmetic} pass of 1x32 rows",
    ]
    assert all(figure.value for figure in figures[1:])
    assert made.model(TOY) is not done[0][0]


def test_what_is_missing_is_said(monkeypatch, capsys, tmp_path):
    versions = {"torch": "2.4.1+cu121"}

    def version(name):
        if name not in versions:
            raise needs.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(needs.metadata, "version", version)
    assert main(["--toy", "--out", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "missing: torch 2.10 or newer: this is 2.4.1+cu121"
    assert lines[1].startswith("missing: transformers 5.3 or newer: it is not installed")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_the_toy_is_named(capsys, tmp_path):
    assert main(["--out", str(tmp_path / "out")]) == 2
    assert "--toy" in capsys.readouterr().err


def test_the_floors_of_what_the_projects_allow():
    """The versions checked are those of pyproject.toml, and a machine with torch 2.11 and transformers 5.17 passes."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=" + ".".join(map(str, needs.PYTHON))
    for name, floor in needs.PACKAGES.items():
        wanted = f"{name}>={'.'.join(map(str, floor))}"
        assert any(text.split(",")[0] == wanted for text in project["dependencies"])
    assert needs.numbers("2.11.0+cu130") == (2, 11)
    assert needs.numbers("5.17.0") >= needs.PACKAGES["transformers"]


def test_bytes_and_operations_of_known_shapes():
    """Qwen2.5-Coder's published sizes: 1.54 and 7.62 billion parameters, 28 and 56 KiB of keys and values a token."""
    assert QWEN_15B.weight_bytes / 2e9 == pytest.approx(1.54, abs=0.01)
    assert QWEN_7B.weight_bytes / 2e9 == pytest.approx(7.615, abs=0.005)
    assert QWEN_15B.kv_bytes == 28 * 1024
    assert QWEN_7B.kv_bytes == 56 * 1024
    ceilings = Ceilings(bytes_per_ms=4.3e9, flops_per_ms=7.9e11)
    read_bound = ceilings.floor_ms(QWEN_7B, 1, 2048, 1)
    assert read_bound == pytest.approx(3.32, abs=0.02)  # 14.14 GB + keys and values at 4.3 TB/s
    assert ceilings.floor_ms(QWEN_7B, 8, 2048, 8) == read_bound
    assert ceilings.floor_ms(QWEN_7B, 2048, 2048, 1) == pytest.approx(35, abs=3)  # bound by products
    assert ceilings.floor_ms(TOY, 1, 10, 0) < ceilings.floor_ms(TOY, 1, 10, 1)


def test_waits_are_those_that_torch_warns_of(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def work():
        for text in ("called a synchronizing CUDA operation", "something else", "called a synchronizing"):
            warnings.warn(text, stacklevel=1)

    assert waits(work) == 2
    assert modes == ["warn", "default"]
