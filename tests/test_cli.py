"""The command line as people and scripts use it, on the shipped weights."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fimserver.cards import read_cards
from fimserver.cli import main
from fimserver.host.fake import FakeEngines
from fimserver.keystrokes import measured_ms
from fimserver.machine import Machine
from fimserver.reasons import Reason
from fimserver.settings import CONFIG_FILE
from fimserver.store.catalogue import fits

FIELDS = {"middle", "route", "model", "tokens", "forwards", "ttft_ms", "total_ms", "reason"}
CODE = 'import os\n\n\ndef read(path):\n    with open(path) as file:\n        return \n\n\nprint(read("a"))\n'


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "read.py"
    path.write_text(CODE)
    return path


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


@pytest.mark.parametrize("route", ["dllm", "ar", "auto"])
def test_a_completion_is_drawn_in_its_place(route, source):
    result = run("complete", f"{source}:6:16", "--model", route, "--max-tokens", 8)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert any(line.startswith("    6 │         return ") for line in lines)
    assert "forward passes" in lines[-1]
    assert "nano" in lines[-1]


@pytest.mark.parametrize("route", ["dllm", "ar"])
def test_json_has_every_field_and_the_same_text(route, source):
    result = run("complete", f"{source}:6:16", "--model", route, "--json")
    answer = json.loads(result.stdout)
    assert set(answer) >= FIELDS
    assert answer["route"] == route
    assert answer["forwards"] >= 1
    assert 0 < answer["ttft_ms"] <= answer["total_ms"]


def test_several_places_are_completed_in_order(source, tmp_path):
    other = tmp_path / "other.py"
    other.write_text("import \n")
    options = ("--model", "ar", "--max-tokens", 4)
    result = run("complete", f"{source}:6:16", f"{other}:1:8", *options)
    assert result.exit_code == 0
    assert result.stdout.count("forward passes") == 2
    assert result.stdout.index("open(path)") < result.stdout.index("    1 │ import ", 40)
    answers = [
        json.loads(line)
        for line in run("complete", f"{source}:6:16", f"{other}:1:8", *options, "--json").stdout.splitlines()
    ]
    assert [answer["route"] for answer in answers] == ["ar", "ar"]


def test_steps_show_masks_falling_to_none(source):
    result = run("complete", f"{source}:6:16", "--model", "dllm", "--show-steps")
    steps = [line for line in result.stdout.splitlines() if "▒▒" in line]
    counts = [line.count("▒▒") for line in steps]
    assert counts
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 0
    assert "▒▒" not in result.stdout.splitlines()[len(steps) + 1]


def test_steps_do_not_spoil_json(source):
    result = run("complete", f"{source}:6:16", "--json", "--show-steps")
    assert set(json.loads(result.stdout)) >= FIELDS
    assert "│" in result.stderr


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_the_text_does_not_depend_on_the_drafter(temperature, source):
    options = (
        "--model",
        "ar",
        "--json",
        "--stop",
        "none",
        "--max-tokens",
        40,
        "--temperature",
        temperature,
        "--seed",
        3,
    )
    answers = [
        json.loads(run("complete", f"{source}:6:16", *options, "--drafter", name).stdout)
        for name in ("none", "ngram", "diffusion:self", "ngram,diffusion:self", "mix", "auto")
    ]
    assert len({a["middle"] for a in answers}) == 1
    assert len({a["tokens"] for a in answers}) == 1
    assert answers[0]["drafting"]["drafted"] == 0


def test_a_trace_shows_every_round(source):
    """In one run: how many rounds a text takes depends on the clock, too."""
    result = run(
        "complete",
        f"{source}:6:16",
        "--model",
        "ar",
        "--stop",
        "none",
        "--max-tokens",
        24,
        "--trace",
        "--json",
    )
    traced = [line for line in result.stderr.splitlines() if " → " in line]
    assert len(traced) == json.loads(result.stdout)["drafting"]["rounds"] > 0


def test_a_drafter_that_does_not_exist_names_those_that_do(source):
    result = run("complete", f"{source}:6:16", "--model", "ar", "--drafter", "oracle")
    assert result.exit_code == 2
    assert "ngram" in result.stderr


def test_line_ends_of_the_file_are_kept(tmp_path):
    path = tmp_path / "dos.py"
    path.write_bytes(CODE.replace("\n", "\r\n").encode())
    unix = tmp_path / "unix.py"
    unix.write_text(CODE)
    for route in ("ar", "dllm"):
        options = ("--model", route, "--json", "--temperature", "1", "--max-tokens", "32", "--stop", "none")
        dos = json.loads(run("complete", f"{path}:5:29", *options).stdout)["middle"]
        lf = json.loads(run("complete", f"{unix}:5:29", *options).stdout)["middle"]
        assert dos == lf.replace("\n", "\r\n")


@pytest.mark.parametrize("place", ["1:1", "10:1", "6:16"])
def test_both_ends_of_a_file_and_tabs_and_astral_text(place, tmp_path):
    path = tmp_path / "a.py"
    path.write_text(
        CODE.replace("    ", "\t").replace("open", "ope😀n").replace("        return ", "        \treturn")
    )
    result = run(
        "complete", f"{path}:{place}" if place != "6:16" else f"{path}:6", "--json", "--max-tokens", 4
    )
    assert result.exit_code == 0
    assert json.loads(result.stdout)["reason"] in set(Reason)


def test_an_empty_file(tmp_path):
    path = tmp_path / "empty.py"
    path.touch()
    for route in ("ar", "dllm"):
        answer = json.loads(
            run("complete", f"{path}:1:1", "--model", route, "--json", "--max-tokens", 4).stdout
        )
        assert answer["tokens"] <= 4
        assert answer["reason"] in set(Reason)


def test_a_file_of_5_mb_is_no_slower_than_its_context(tmp_path):
    path = tmp_path / "large.py"
    path.write_text("value = compute(1, 2)\n" * 240_000)
    answer = json.loads(
        run("complete", f"{path}:120000:9", "--json", "--model", "ar", "--max-tokens", 4).stdout
    )
    assert answer["forwards"] <= 20


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["complete"], 2, "give either FILE:LINE:COL or --spans"),
        (["complete", "none.py:1:1"], 2, "none.py cannot be read"),
        (["complete", "--spans", "x", "--json"], 2, "leave --json"),
        (["complete", "{source}:99:1"], 2, "line 99 is outside"),
        (["complete", "{source}:1:1", "--schedule", "x"], 2, "no schedule named 'x': use one of threshold"),
        (["complete", "{source}:1:1", "--max-tokens", "0"], 2, "option max_tokens"),
        (["complete", "{source}:1:1", "--ar-card", "gpt", "--model", "ar"], 2, "no model card named 'gpt'"),
        (
            ["complete", "{source}:1:1", "--ar-card", "dreamon-7b", "--model", "ar"],
            2,
            "does not serve the ar route",
        ),
        (
            ["complete", "{source}:1:1", "--dllm-card", "dreamon-7b", "--model", "dllm"],
            1,
            "fimserver models get dreamon-7b",
        ),
        (["complete", "{source}:1:1", "--device", "cuda"], 2, "no usable CUDA GPU"),
        (["models", "get", "nothing"], 2, "no model card named 'nothing'"),
        (["models", "get", "nano"], 2, "shipped with fimserver"),
    ],
)
def test_errors_are_one_line_with_the_right_code(arguments, code, complaint, source):
    if "cuda" in arguments and _has_gpu():
        pytest.skip("this machine has a GPU")
    result = run(*(a.format(source=source) for a in arguments))
    assert result.exit_code == code
    assert complaint in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def _device():
    return "cuda" if _has_gpu() else "cpu"


def _has_gpu():
    import torch

    return torch.cuda.is_available()


def test_spans_give_a_line_each_in_order(tmp_path):
    path = tmp_path / "spans.jsonl"
    rows = [{"id": f"r{i}", "prefix": "x = [1, 2", "suffix": "]\n", "kind": "line"} for i in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run("complete", "--spans", path, "--limit", 2, "--max-tokens", 4, "--model", "ar")
    assert result.exit_code == 0
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [a["id"] for a in answers] == ["r0", "r1"]
    for answer in answers:
        assert set(answer) >= FIELDS | {"id", "completion", "ms"}
        assert answer["completion"] == answer["middle"]


def test_rows_of_humaneval_infilling_give_completions_by_task_and_scores(tmp_path):
    path = tmp_path / "spans.jsonl"
    row = {
        "prompt": "def f(a, b):\n    return ",
        "suffix": "\n",
        "canonical_solution": "a + b",
        "entry_point": "f",
        "test": "…",
    }
    path.write_text("".join(json.dumps(row | {"task_id": f"T/{i}"}) + "\n" for i in range(2)))
    result = run("complete", "--spans", path, "--language", "python", "--model", "ar", "--max-tokens", 8)
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [a["task_id"] for a in answers] == ["T/0", "T/1"]
    for answer in answers:
        assert answer["exact"] == (answer["completion"].rstrip() == "a + b")
        assert 0 <= answer["similarity"] <= 1
        assert {"first_line", "tokens", "reason"} <= set(answer)
    exact = sum(a["exact"] for a in answers) / 2
    assert f"2 spans: exact {exact:.1%}, first line right" in result.stderr


def test_the_language_of_a_row_is_its_own_before_that_of_the_command(tmp_path):
    path = tmp_path / "spans.jsonl"
    rows = [{"language": "go"}, {"path": "a.rs"}, {}, {"language": "", "path": "a.py"}]
    path.write_text(
        "".join(json.dumps({"id": i, "prefix": "x", "suffix": ""} | row) + "\n" for i, row in enumerate(rows))
    )
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        engines = FakeEngines(lambda request, _route: seen.append(request.features.language) or iter(["x"]))
        patch.setattr("fimserver.engine.engines.ModelPool", lambda _settings: engines)
        run("complete", "--spans", path, "--language", "python", "--model", "ar")
    assert seen == ["go", "rust", "python", "python"]


def test_a_bad_span_is_reported_and_the_others_are_done(tmp_path):
    path = tmp_path / "spans.jsonl"
    path.write_text('{"id": 1, "prefix": "a"}\n{"id": 2, "prefix": "a", "suffix": ""}\n')
    result = run("complete", "--spans", path, "--max-tokens", 2)
    assert result.exit_code == 1
    first, second = (json.loads(line) for line in result.stdout.splitlines())
    assert first["reason"] == "bad_input"
    assert "'suffix' is missing" in first["error"]
    assert second["id"] == 2
    assert "1 rows failed" in result.stderr


def test_a_spans_file_in_another_encoding_is_said_so_row_by_row(tmp_path):
    path = tmp_path / "spans.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"id": 1, "prefix": "a", "suffix": ""}\n{"id": 2, "prefix": "\xff", "suffix": ""}\n'
    )
    result = run("complete", "--spans", path, "--max-tokens", 2, "--model", "ar")
    first, second = (json.loads(line) for line in result.stdout.splitlines())
    assert first["id"] == 1
    assert "not JSON in UTF-8" in second["error"]


def test_a_model_that_is_not_there_ends_a_spans_run_with_one_line(tmp_path):
    path = tmp_path / "spans.jsonl"
    path.write_text('{"id": 1, "prefix": "a", "suffix": ""}\n' * 3)
    result = run("complete", "--spans", path, "--model", "dllm", "--dllm-card", "dreamon-7b")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "fimserver models get dreamon-7b" in result.stderr


def test_doctor_reports_machine_and_routes(monkeypatch):
    machine = Machine(0.0, 6.0)
    monkeypatch.setattr("fimserver.engine.engines.free_machine", lambda _: machine)
    result = run("doctor", "--json")
    findings = {f["name"]: f for f in json.loads(result.stdout)}
    assert {
        "fimserver",
        "device",
        "fits",
        "best ar",
        "best dllm",
        "present",
        "ar",
        "dllm",
        "rows",
        "ngram",
        "auto",
    } <= set(findings)
    assert findings["fits"]["value"].split(", ") == [
        card.name for card in read_cards().values() if fits(card, machine)
    ]
    assert "tokens a pass" in findings["ngram"]["value"]
    assert "tokens/s" in findings["ar"]["value"]
    assert "ms a keystroke" in findings["ar"]["value"]
    assert measured_ms(_device())["nano"] > 0
    assert result.exit_code == (0 if all(f["ok"] for f in findings.values()) else 1)


def test_an_editor_does_not_wait_for_other_commands():
    script = "import sys, fimserver.front.lsp.stdio, fimserver.cli as cli; print({*cli.ELSEWHERE.values()} & {*sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == ["set()"]


def test_the_process_starts_without_torch_and_leaves_stdout_clean(source):
    """What a shell sees: help without heavy imports, JSON alone on stdout."""
    script = "import sys, fimserver.cli; print('torch' in sys.modules, 'transformers' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
    )
    assert loaded.stdout.split() == ["False", "False"]
    command = [
        sys.executable,
        "-m",
        "fimserver.cli",
        "complete",
        f"{source}:6:16",
        "--json",
        "--max-tokens",
        "4",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert set(json.loads(done.stdout)) >= FIELDS
    assert done.stderr == ""


def listed(*command):
    """The flags that a command's help lists."""
    return set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", run(*command, "--help").stdout, re.MULTILINE))


@pytest.mark.parametrize(
    ("command", "has", "lacks"),
    [
        ((), {"--model", "--connect", "--record", "--ab"}, {"--decode-rows", "--draft-first", "--verify"}),
        (
            ("complete",),
            {"--model", "--connect", "--drafter", "--spans"},
            {"--record", "--ab", "--stats", "--idle-exit-minutes"},
        ),
        (("host",), {"--device", "--idle-exit-minutes"}, {"--record", "--connect", "--ab", "--temperature"}),
        (("serve",), {"--listen", "--token", "--device"}, {"--record", "--connect", "--ab", "--draft-first"}),
        (("doctor",), {"--device", "--ar-card"}, {"--record", "--connect", "--ab", "--token"}),
        (("stats",), {"--connect", "--token", "--days"}, {"--device", "--record", "--ab", "--drafter"}),
        (("ab",), {"--a", "--b", "--drafter", "--max-tokens"}, {"--record", "--ab", "--connect", "--stats"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_help_lists_what_matters_to_the_command_and_names_the_settings_file(command, has, lacks):
    flags = listed(*command)
    assert has <= flags
    assert not lacks & flags
    assert str(CONFIG_FILE) in run(*command, "--help").stdout


def test_commands_come_before_options_in_help():
    text = run("--help").stdout
    assert text.index("Commands:") < text.index("Options:")
    assert text.count("\n") <= 62


def test_a_setting_that_is_not_listed_is_taken_all_the_same(source):
    assert (
        run(
            "complete", f"{source}:6:16", "--stats", "off", "--max-tokens", 1, "--model", "ar", "--json"
        ).exit_code
        == 0
    )
