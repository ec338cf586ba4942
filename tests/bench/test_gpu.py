"""The command that measures a GPU: every step of it at toy sizes, with torch and transformers alone."""

import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from bench.gpu import coder, needs, packed_coder, processes, quantised, toy_coder
from bench.gpu.__main__ import main
from bench.gpu.clock import waits
from bench.gpu.figures import Figure, Sheet
from bench.gpu.processes import Plan
from bench.gpu.setup import Bench
from bench.gpu.shapes import QWEN_7B, QWEN_15B, TOY, Ceilings
from bench.gpu.steps import SMALL, Step, groups, measured, unfit
from fimserver.engine.weights.gguf import read_gguf

ROOT = Path(__file__).parents[2]
# Refuses whatever our own files import beside the standard library, torch, transformers and what that requires.
ALONE = """
import sys

ALLOWED = {"torch", "transformers", "safetensors", "fimserver", "bench", *sys.stdlib_module_names}

class Alone:
    def find_spec(self, name, path=None, target=None):
        frame = sys._getframe(1)
        while frame and "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        importer = frame.f_code.co_filename if frame else ""
        ours = "/fimserver/" in importer or "/bench/gpu/" in importer
        if ours and name.partition(".")[0] not in ALLOWED:
            raise ModuleNotFoundError(f"{importer} imports {name}", name=name)

sys.meta_path.insert(0, Alone())
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu")
    (alone := tmp_path_factory.mktemp("alone")).joinpath("sitecustomize.py").write_text(ALONE)
    command = [sys.executable, "-m", "bench.gpu", "--toy", "--minutes", "9", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{alone}:{ROOT}"}
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
    assert unmeasured.pop("coder") == "needs gguf"
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
        "attention as one kernel",
        "attention as two products",
        "rows, compiled",
        "cached step, graphs",
        "cached step, no graphs",
        "middle of 16, 2 a step",
        "host waits in a round",
        "host waits in a denoising step",
        "cancel to idle",
        "shapes in which texts may join",
        "8 requests at once: tokens a second",
        "peak memory",
        "running out of memory",
    ):
        assert any(wanted in name for name in names), wanted


def test_texts_are_the_same_whatever_is_drafted_and_cached(run):
    _, rows, _ = run
    equal = [row for row in rows if "texts equal" in row["name"] or "memory, equal" in row["name"]]
    assert len(equal) == 11
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


def test_files_are_few(run):
    _, _, out = run
    assert sorted(path.name for path in out.iterdir()) == ["figures.json", "figures.md"]


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
    assert not measured(made, Step("broken", fails, 0))
    assert not made.lost
    rows = [figure.row() for figure in made.sheet.figures]
    assert [row["name"] for row in rows] == ["half", "broken"]
    assert rows[1]["note"] == "failed: RuntimeError: no such kernel"


def test_no_step_starts_that_does_not_fit_the_time(tmp_path):
    made = bench(tmp_path, until=0.0)
    steps = [step for group in groups(SMALL, a_plan(tmp_path)).values() for step in group]
    assert [step.name for step in steps if unfit(made, step)] == [step.name for step in steps]
    assert unfit(bench(tmp_path), steps[0]) == ""


def a_plan(tmp_path, **options):
    return Plan(tmp_path / "out", 1.0, "cpu", toy=True, **options)


def test_every_group_has_a_limit(tmp_path):
    assert list(groups(SMALL, a_plan(tmp_path))) == list(processes.GROUPS)


def test_a_group_that_hangs_or_breaks_down_is_a_row(tmp_path):
    plan = a_plan(tmp_path)
    for name, program in (("late", "import time; time.sleep(600)"), ("broken", "import os; os._exit(139)")):
        child = subprocess.Popen([sys.executable, "-c", program])
        assert processes._wait(plan, name, child, 1.0 if name == "late" else 60.0) == 1
    rows = json.loads((plan.out / "figures.json").read_text())
    assert [(row["name"], row["note"]) for row in rows] == [
        ("group late", "ended after 1 s"),
        ("group broken", "failed: exit status 139"),
    ]


def test_without_time_no_group_begins(tmp_path):
    plan = a_plan(tmp_path)
    assert processes._all(plan, 0.0) == 0
    rows = json.loads((plan.out / "figures.json").read_text())
    assert {row["note"] for row in rows} == {"no time left"}
    assert len(rows) == len(processes.GROUPS)


def test_a_group_whose_starter_has_gone_does_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert processes.run(a_plan(tmp_path, group="small")) == 0
    assert not (tmp_path / "out").exists()


def test_figures_are_kept_from_process_to_process(tmp_path):
    Sheet(tmp_path).add([Figure("a", 2.0, "ms", 1.0, "x")])
    assert "a" in Sheet(tmp_path, resume=True)
    again = Sheet(tmp_path, resume=True)
    again.add([Figure("b", 3.0, "ms")])
    assert [(f.name, f.value, f.floor, f.note) for f in again.figures] == [
        ("a", 2.0, 1.0, "x"),
        ("b", 3.0, None, ""),
    ]
    assert "a" not in Sheet(tmp_path)


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
    assert main(["--here", "--out", str(tmp_path / "out")]) == 2
    assert "--toy" in capsys.readouterr().out


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


def test_both_routes_of_a_coder_are_measured_on_its_held_out_texts(tmp_path):
    """Random weights in the form of the real ones: every figure comes, and the texts are those of plain decoding."""
    made = bench(tmp_path)
    with torch.no_grad():
        figures = {figure.name: figure for figure in coder.measure(made, None, None, toy=True)}
    arms = ("ar plain", "ar ngram", "ar ngram and canvas", "dllm checked")
    for arm in arms:
        assert figures[f"coder {arm}: texts equal to plain decoding"].value == 1
        assert figures[f"coder {arm}: ms a token"].value > 0
        assert figures[f"coder {arm}: ms a token"].floor > 0
    assert figures["coder ar plain: passes a token"].value == 1
    assert figures["coder pass of 8 rows with masks against without"].value >= 1
    assert figures["coder first token warm"].note.startswith("95 %")
    assert figures["coder time of a middle, dllm checked against ar ngram"].value > 0


def test_a_coder_is_left_out_without_its_files(tmp_path):
    (figure,) = coder.measure(bench(tmp_path), None, None, toy=False)
    assert (figure.value, figure.note) == (None, "needs --packed FOLDER")


def test_a_coder_and_its_texts_are_read_as_they_were_packed(tmp_path):
    folder, _ = toy_coder.write_toy(tmp_path)
    held_out = packed_coder.read_held_out(
        folder / "valid.safetensors", 5, 100, first_marker=toy_coder.TOY_MARKERS, pad=toy_coder.TOY_PAD
    )
    assert len(held_out.prompts) == 5
    prompt = held_out.prompts[0]
    assert len(prompt.ids) == toy_coder.PROMPT
    assert prompt.suffix == prompt.ids[:10]
    assert prompt.ids[10] in held_out.markers
    assert prompt.prefix == prompt.ids[11:]
    assert held_out.mask == toy_coder.TOY_PAD
    model = packed_coder.load_coder(folder / "cut.gguf", torch.device("cpu"), torch.float32)
    read = read_gguf(folder / "cut.gguf")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, read.tensor(name)), name
    assert model.config.rope_parameters["rope_theta"] == 1e6
    assert packed_coder.shape_of(model, "x").tied


def test_the_stand_in_for_a_vocabulary_loses_nothing():
    vocabulary = packed_coder.TokenCharacters(512, frozenset({500}))
    assert vocabulary.encode(vocabulary.decode([3, 511, 0])) == [3, 511, 0]
    assert vocabulary.largest_id == 511
