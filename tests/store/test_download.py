"""Downloads of one file: whole, resumed, interrupted, silent, damaged, with a full disk, and two at once."""

import hashlib
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fimserver.errors import DiskFullError, DownloadError, InputError
from fimserver.store import download, transfer
from fimserver.store.download import get_model
from fimserver.store.registry import sources_of
from tests.store.conftest import DATA, NAME
from tests.store.servers import serving

PATH = f"/{NAME}"


def get(card, folder, seen, url):
    return get_model(card, folder, lambda card, work: sources_of(card, work, url), seen)


def test_a_file_comes_whole_with_its_manifest_and_progress(card, seen, tmp_path):
    with serving({PATH: DATA}) as server:
        where = get(card, tmp_path, seen, server.url + PATH)
    assert where == tmp_path / "tiny"
    assert (where / NAME).read_bytes() == DATA
    assert json.loads((where / "manifest.json").read_text())["files"] == dict(card.files)
    assert sorted(path.name for path in where.iterdir()) == ["manifest.json", NAME]
    assert seen.total == len(DATA)
    assert seen.places == sorted(seen.places)
    assert seen.places[-1] == len(DATA)


def test_the_size_and_the_room_are_said_before(card, seen, tmp_path):
    with serving({PATH: DATA}) as server:
        get(card, tmp_path, seen, f"{server.url}/")
    assert any("250 kB to" in line and "free" in line for line in seen.lines)


def test_what_was_broken_off_goes_on_from_there(card, seen, tmp_path):
    part = tmp_path / "tiny.part"
    part.mkdir()
    (part / f"{NAME}.part").write_bytes(DATA[:90_001])
    with serving({PATH: DATA}) as server:
        get(card, tmp_path, seen, server.url + PATH)
    assert server.asked == [(PATH, "bytes=90001-")]
    assert seen.places[0] == 90_001
    assert (tmp_path / "tiny" / NAME).read_bytes() == DATA


def test_a_server_without_ranges_is_read_from_the_start(card, seen, tmp_path):
    part = tmp_path / "tiny.part"
    part.mkdir()
    (part / f"{NAME}.part").write_bytes(DATA[:90_001])
    with serving({PATH: DATA}, {PATH: {"no_ranges": True}}) as server:
        get(card, tmp_path, seen, server.url + PATH)
    assert (tmp_path / "tiny" / NAME).read_bytes() == DATA


def test_a_connection_that_breaks_is_asked_again_for_the_rest(card, seen, tmp_path):
    with serving({PATH: DATA}, {PATH: {"breaks_after": 70_000}}) as server:
        get(card, tmp_path, seen, server.url + PATH)
    assert len(server.asked) == 4
    assert (tmp_path / "tiny" / NAME).read_bytes() == DATA


def test_a_silent_source_is_named_and_left(card, seen, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "ANSWER_S", 0.5)
    started = time.monotonic()
    with serving({PATH: DATA}, {PATH: {"silent": True}}) as server:
        with pytest.raises(DownloadError, match="has not answered for") as raised:
            get(card, tmp_path, seen, server.url + PATH)
        assert server.url in str(raised.value)
    assert time.monotonic() - started < 60
    assert "\n" not in str(raised.value)


def test_the_limit_is_five_seconds():
    assert transfer.ANSWER_S == 5


def test_a_file_with_another_hash_is_refused_and_nothing_of_it_kept(card, seen, tmp_path):
    with serving({PATH: DATA[:-1] + b"\x00"}) as server, pytest.raises(DownloadError, match="hash differs"):
        get(card, tmp_path, seen, server.url + PATH)
    assert not (tmp_path / "tiny").exists()
    assert not (tmp_path / "tiny.part" / f"{NAME}.part").exists()


def test_a_wrong_beginning_is_thrown_away_and_the_file_fetched_anew(card, seen, tmp_path):
    part = tmp_path / "tiny.part"
    part.mkdir()
    (part / f"{NAME}.part").write_bytes(b"\x00" * 1000)
    with serving({PATH: DATA}) as server:
        get(card, tmp_path, seen, server.url + PATH)
    assert (tmp_path / "tiny" / NAME).read_bytes() == DATA


def test_a_file_of_another_size_is_refused_before_it_is_read(card, seen, tmp_path):
    with serving({PATH: DATA + b"more"}) as server, pytest.raises(DownloadError, match="another file there"):
        get(card, tmp_path, seen, server.url + PATH)


@pytest.mark.parametrize(
    ("status", "says"), [(404, "has no /tiny.gguf"), (403, "refuses /tiny.gguf"), (500, "answers 500")]
)
def test_a_server_that_refuses_is_quoted(status, says, card, seen, tmp_path):
    with (
        serving({PATH: DATA}, {PATH: {"status": status}}) as server,
        pytest.raises(DownloadError, match=says),
    ):
        get(card, tmp_path, seen, server.url + PATH)


def test_a_name_that_is_not_known_is_said_with_the_host(card, seen, tmp_path):
    with pytest.raises(DownloadError, match=r"http://nowhere\.invalid"):
        get(card, tmp_path, seen, "http://nowhere.invalid/tiny.gguf")


def test_too_little_room_is_said_before_anything_is_fetched(card, seen, tmp_path, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with serving({PATH: DATA}) as server, pytest.raises(DiskFullError, match="needs 250 kB") as raised:
        get(card, tmp_path, seen, server.url + PATH)
    assert server.asked == []
    assert "--models-dir" in str(raised.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_disk_that_becomes_full_is_said_in_one_line(card, seen, tmp_path):
    part = tmp_path / "tiny.part"
    part.mkdir()
    (part / f"{NAME}.part").symlink_to("/dev/full")
    with (
        serving({PATH: DATA}) as server,
        pytest.raises(DiskFullError, match="is full; what was fetched is kept"),
    ):
        get(card, tmp_path, seen, server.url + PATH)


def test_what_is_here_is_not_fetched_again_unless_it_is_damaged(card, seen, tmp_path):
    with serving({PATH: DATA}) as server:
        get(card, tmp_path, seen, server.url + PATH)
        get(card, tmp_path, seen, server.url + PATH)
        assert len(server.asked) == 1
        (tmp_path / "tiny" / NAME).write_bytes(DATA[:-1] + b"\x00")
        get(card, tmp_path, seen, server.url + PATH)
    assert any("is damaged" in line for line in seen.lines)
    assert (tmp_path / "tiny" / NAME).read_bytes() == DATA


def test_two_at_once_fetch_it_once(card, seen, tmp_path):
    with serving({PATH: DATA}, {PATH: {"slow_s": 0.02}}) as server:
        threads = [
            threading.Thread(target=get, args=(card, tmp_path, seen, server.url + PATH)) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert len(server.asked) == 1
    assert any("another process" in line for line in seen.lines)


SCRIPT = """
import sys
from pathlib import Path
from fimserver.cards import Card
from fimserver.store.download import get_model
from fimserver.store.progress import ProgressBar
from fimserver.store.registry import sources_of
card = Card.model_validate_json(Path(sys.argv[3]).read_text())
with ProgressBar() as bar:
    get_model(card, Path(sys.argv[1]), lambda card, work: sources_of(card, work, sys.argv[2]), bar)
"""


@pytest.mark.parametrize("ends", [signal.SIGINT, signal.SIGKILL])
def test_a_download_that_is_stopped_at_any_moment_can_go_on(ends, card, seen, tmp_path):
    """Stopped again and again after some bytes, it ends with the right file, and no byte is fetched twice in whole."""
    partial = tmp_path / "tiny.part" / f"{NAME}.part"
    (tmp_path / "card.json").write_text(card.model_dump_json())
    with serving({PATH: DATA}, {PATH: {"slow_s": 0.1}}) as server:
        command = [
            sys.executable,
            "-c",
            SCRIPT,
            str(tmp_path),
            server.url + PATH,
            str(tmp_path / "card.json"),
        ]
        for _ in range(2):
            before = partial.stat().st_size if partial.exists() else 0
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            while (partial.stat().st_size if partial.exists() else 0) <= before and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(ends)
            assert process.wait(20) != 0
            assert DATA.startswith(partial.read_bytes())
        server.faults.clear()
        get(card, tmp_path, seen, server.url + PATH)
    offsets = [int(asked.removeprefix("bytes=").rstrip("-")) for _, asked in server.asked]
    assert offsets[0] == 0
    assert offsets == sorted(set(offsets))
    assert hashlib.sha256((tmp_path / "tiny" / NAME).read_bytes()).hexdigest() == card.files[NAME]


@pytest.mark.parametrize("url", ["tiny.gguf", "ftp://x/tiny.gguf", "file:///tiny.gguf"])
def test_a_url_of_another_kind_is_an_input_error(url, card, seen, tmp_path):
    with pytest.raises(InputError, match="http"):
        get(card, tmp_path, seen, url)
