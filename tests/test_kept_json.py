"""JSON files that can be made again: several processes that add to one lose nothing of each other."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fimserver.kept_json import change_kept, read_kept, write_kept

ADDS = """
import pathlib, sys
from fimserver.kept_json import change_kept
path, name = pathlib.Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
for number in range(100):
    change_kept(path, f"{name} {number}", lambda _: number)
    change_kept(path, "count", lambda count: (count or 0) + 1)
"""
PATIENCE_S = 60.0


def test_processes_that_add_at_once_keep_each_others_entries(tmp_path):
    path = tmp_path / "folder" / "kept.json"
    command = [sys.executable, "-c", ADDS, str(path)]
    programs = [
        subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in "abc"
    ]
    for program in programs:
        assert program.stdout.readline() == "ready\n"
    for program in programs:
        program.stdin.write("go\n")
        program.stdin.flush()
    for program in programs:
        program.communicate(timeout=PATIENCE_S)
        assert program.returncode == 0
    wanted = {f"{name} {number}": number for name in "abc" for number in range(100)}
    assert read_kept(path) == wanted | {"count": 300}
    assert sorted(each.name for each in path.parent.iterdir()) == ["kept.json", "kept.lock"]


def test_one_entry_is_changed_and_the_others_stay(tmp_path):
    path = tmp_path / "kept.json"
    write_kept(path, {"a": 1, "b": 2})
    change_kept(path, "a", lambda known: known + 10)
    change_kept(path, "c", lambda known: known)
    assert read_kept(path) == {"a": 11, "b": 2, "c": None}


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
def test_a_damaged_file_is_begun_again(text, tmp_path):
    path = tmp_path / "kept.json"
    path.write_text(text)
    change_kept(path, "a", lambda known: [known])
    assert json.loads(path.read_text()) == {"a": [None]}


def test_a_folder_that_cannot_be_made_does_no_harm(tmp_path):
    (tmp_path / "file").write_text("")
    change_kept(tmp_path / "file" / "kept.json", "a", lambda _: 1)
    assert read_kept(tmp_path / "file" / "kept.json") == {}


@pytest.mark.parametrize("write", [write_kept, lambda path, _: change_kept(path, "a", lambda _: 1)])
def test_the_folder_is_made_once_and_for_the_user_alone(write, tmp_path, monkeypatch):
    made = []
    mkdir = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", lambda path, *a, **k: made.append(path) or mkdir(path, *a, **k))
    write(tmp_path / "folder" / "kept.json", {"a": 1})
    assert read_kept(tmp_path / "folder" / "kept.json") == {"a": 1}
    assert made == [tmp_path / "folder"]
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o700
