"""The command as a shell starts it: interrupted early, and on terminals that are not UTF-8."""

import json
import os
import subprocess
import sys

import pytest

from fimserver.cli import main

INTERRUPTED = """
import sys

class Stop:
    def find_spec(self, name, *_):
        if name == {module!r}:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Stop())
from fimserver.entry import run
sys.argv = ["fimserver", "--help"]
run()
"""


@pytest.mark.parametrize("module", ["fimserver.cli", "click", "fimserver.settings", "pydantic"])
def test_ctrl_c_while_modules_are_imported_is_no_traceback(module):
    command = [sys.executable, "-c", INTERRUPTED.format(module=module)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr == ""


def run(encoding, *arguments):
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "fimserver.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, env=environment, check=False)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
class TestATerminalThatIsNotUTF8:
    @pytest.mark.parametrize(
        "arguments", [["--help"], ["complete", "--help"], ["models"], ["stats"], ["ab", "--help"]]
    )
    def test_what_it_lacks_is_a_question_mark(self, arguments, encoding):
        done = run(encoding, *arguments)
        assert done.returncode == 0
        assert b"Traceback" not in done.stderr

    def test_a_completion_is_drawn(self, encoding, tmp_path):
        path = tmp_path / "größe.py"
        path.write_text("größe = 'über €5 🎉'\nx = \n", "utf-8")
        done = run(encoding, "complete", f"{path}:2:5", "--max-tokens", 2, "--model", "ar", "--show-steps")
        assert done.returncode == 0, done.stderr
        assert b"    2 " in done.stdout

    def test_json_is_escaped_and_not_damaged(self, encoding, tmp_path):
        spans = tmp_path / "spans.jsonl"
        names = ["größe", "🎉", "\udc80 half", "€"]
        rows = ({"id": name, "prefix": f"{name} = ", "suffix": name} for name in names)
        spans.write_text("".join(json.dumps(row) + "\n" for row in rows))
        done = run(encoding, "complete", "--spans", spans, "--max-tokens", 2, "--model", "ar")
        assert done.returncode == 0, done.stderr
        assert [json.loads(line)["id"] for line in done.stdout.decode(encoding).strip().split("\n")] == names


@pytest.mark.parametrize("half", ["\ud83c", "a\udc80", "\udfff\ud800"])
def test_half_characters_in_spans_end_nothing(half, tmp_path):
    spans = tmp_path / "spans.jsonl"
    row = {
        "id": half,
        "prefix": f"x = '{half}",
        "suffix": f"{half}'\n",
        "path": f"{half}.py",
        "middle": f"y{half}",
    }
    spans.write_text(
        json.dumps(row) + "\n" + json.dumps({"id": "next", "prefix": "x = ", "suffix": ""}) + "\n"
    )
    done = run("utf-8", "complete", "--spans", spans, "--max-tokens", 2, "--model", "ar")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == [half, "next"]


AT_WORK = """
import sys, threading, time
from fimserver.exits import run_to_end

def main():
    threading.Thread(target=time.sleep, args=(600,), name="engine").start()  # not a daemon: it would be waited for
    print("served")
    {end}

run_to_end(main)
"""


@pytest.mark.parametrize(
    ("end", "code"), [("sys.exit(3)", 3), ("sys.exit()", 0), ("raise KeyboardInterrupt", 130)]
)
def test_the_end_does_not_wait_for_an_engine_at_work(end, code):
    command = [sys.executable, "-c", AT_WORK.format(end=end)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (code, "served\n", "")


def test_ctrl_c_while_a_command_runs_is_its_exit_code_alone(monkeypatch, capsys):
    monkeypatch.setattr("fimserver.commands.pause.resume_hosts", interrupted)
    with pytest.raises(SystemExit) as end:
        main(["resume"])
    assert end.value.code == 130
    assert capsys.readouterr() == ("", "")


def interrupted():
    raise KeyboardInterrupt
