"""Ctrl-C during a comparison: it ends at once and keeps its rows, and the same command resumes it."""

import json
import signal
import subprocess
import sys
import time

import pytest

SPANS = 120


def rows(out):
    path = out / "unfinished.jsonl"
    lines = path.read_text().splitlines()[1:] if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


@pytest.mark.parametrize("arms", [("ar", "ar,drafter=none"), ("dllm", "auto")])
def test_ctrl_c_ends_a_comparison_and_spoils_no_item(arms, tmp_path):
    spans, out = tmp_path / "spans.jsonl", tmp_path / "out"
    made = ({"id": f"s{n}", "prefix": f"x{n} = [1, ", "middle": "2]", "suffix": "\n"} for n in range(SPANS))
    spans.write_text("".join(json.dumps(row) + "\n" for row in made))
    command = [
        sys.executable,
        "-m",
        "fimserver.cli",
        "ab",
        "--a",
        arms[0],
        "--b",
        arms[1],
        "--spans",
        str(spans),
    ]
    command += ["--out", str(out), "--max-tokens", "24", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        end = time.monotonic() + 120
        while len(rows(out)) < 2 and running.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=60)
    done = rows(out)
    assert running.returncode == 130, errors
    assert "the same command resumes" in errors
    assert "Traceback" not in errors
    assert 2 <= len(done) < SPANS
    assert {row[side]["reason"] for row in done for side in "ab"}.isdisjoint({"failed", "cancelled"})
