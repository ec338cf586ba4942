"""A hub on this machine as a source: whole, pinned, silent, and with a damaged file."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest

from fimserver.errors import DownloadError
from fimserver.store import transfer
from fimserver.store.download import get_model
from fimserver.store.registry import sources_of
from tests.store.conftest import DATA, NAME
from tests.store.servers import serving, simple_index
from tests.tiny import make_card, make_checkpoint

SHA = "a" * 40
LET_GO = threading.Event()


class Hub(BaseHTTPRequestHandler):
    """The two endpoints that a download uses."""

    files: dict[str, bytes] = {}
    announced: dict[str, str] = {}
    blobs: dict[str, str] = {}
    asked: list[str] = []
    silent = False

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.asked.append(self.path)
        if Hub.silent:
            LET_GO.wait(20)
            return None
        if self.path.startswith("/api/models/someone/tiny"):
            siblings = [
                {"rfilename": n, "size": len(b), "blobId": self.blobs.get(n, _blob(b))}
                | (
                    {"lfs": {"sha256": self.announced[n], "size": len(b), "pointerSize": 9}}
                    if "model" in n
                    else {}
                )
                for n, b in self.files.items()
            ]
            return self._send(
                json.dumps({"id": "someone/tiny", "sha": SHA, "siblings": siblings}).encode(), {}
            )
        return self._file()

    def _file(self):
        name = self.path.split("/resolve/")[-1].split("?")[0][41:]
        data = self.files.get(name)
        if data is None:
            self.send_error(404)
            return
        etag = self.announced[name]
        self._send(data, {"X-Repo-Commit": SHA, "ETag": f'"{etag}"', "X-Linked-Size": str(len(data))})

    def _send(self, data, headers):
        self.send_response(200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _blob(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    source = make_checkpoint(tmp_path / "source", "qwen2")
    Hub.files = {p.name: p.read_bytes() for p in source.iterdir()}
    Hub.files["pytorch_model.bin"] = b"pickle"
    Hub.files["modeling_tiny.py"] = b"raise SystemExit"
    Hub.announced = {n: hashlib.sha256(b).hexdigest() for n, b in Hub.files.items()}
    Hub.blobs, Hub.asked, Hub.silent = {}, [], False
    LET_GO.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield server
    LET_GO.set()
    server.shutdown()
    server.server_close()


def get(card, folder, seen):
    return get_model(card, folder, sources_of, seen)


def test_a_model_comes_verified_and_without_code(hub, seen, tmp_path):
    folder = get(make_card("qwen2"), tmp_path, seen)
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    assert not list(folder.glob("*.py"))
    assert not list(folder.glob("*.bin"))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"] == {
        n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in manifest["files"]
    }
    assert seen.total == sum((folder / name).stat().st_size for name in manifest["files"])


def test_the_commit_that_the_hub_names_is_fetched(hub, seen, tmp_path):
    get(make_card("qwen2"), tmp_path, seen)
    assert all(f"/resolve/{SHA}/" in path for path in Hub.asked if "/resolve/" in path)


def test_a_pinned_gguf_comes_alone_from_the_pinned_revision(hub, seen, tmp_path):
    digest = hashlib.sha256(b"GGUF and more").hexdigest()
    Hub.files["a.gguf"] = b"GGUF and more"
    Hub.announced["a.gguf"] = digest
    card = make_card("qwen2", revision="b" * 40, files={"a.gguf": digest}, download_bytes=13)
    folder = get(card, tmp_path, seen)
    assert sorted(path.name for path in folder.iterdir()) == ["a.gguf", "manifest.json"]
    assert [path.split("?")[0] for path in Hub.asked] == [f"/someone/tiny/resolve/{'b' * 40}/a.gguf"]


def test_a_file_that_differs_from_the_hub_is_refused_and_named(hub, seen, tmp_path):
    Hub.files["model.safetensors"] = Hub.files["model.safetensors"][:-1] + b"\x01"
    with pytest.raises(DownloadError, match=r"model\.safetensors"):
        get(make_card("qwen2"), tmp_path, seen)
    assert not (tmp_path / "tiny").exists()


def test_a_small_file_that_differs_from_the_hub_is_refused_and_named(hub, seen, tmp_path):
    Hub.blobs["config.json"] = "0" * 40
    with pytest.raises(DownloadError, match=r"config\.json"):
        get(make_card("qwen2"), tmp_path, seen)


def test_a_file_that_differs_from_the_card_is_refused(hub, seen, tmp_path):
    card = make_card("qwen2", files={"config.json": "0" * 64})
    with pytest.raises(DownloadError, match=r"config\.json than the one that is pinned"):
        get(card, tmp_path, seen)


def test_a_file_that_the_hub_lacks_is_named(hub, seen, tmp_path):
    card = make_card("qwen2", files={"more.json": "0" * 64})
    with pytest.raises(DownloadError, match=r"has no more\.json"):
        get(card, tmp_path, seen)


def test_a_repository_without_weights_that_are_read_is_refused(hub, seen, tmp_path):
    del Hub.files["model.safetensors"]
    with pytest.raises(DownloadError, match="no weights in safetensors or GGUF"):
        get(make_card("qwen2"), tmp_path, seen)


def test_no_hub_is_a_clear_error(hub, seen, tmp_path):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(DownloadError, match="someone/tiny") as raised:
        get(make_card("qwen2"), tmp_path, seen)
    assert "\n" not in str(raised.value)


def test_an_unknown_repository_is_a_clear_error(hub, seen, tmp_path):
    with pytest.raises(DownloadError, match="someone/else"):
        get(make_card("qwen2", hub="someone/else"), tmp_path, seen)


def test_a_hub_that_never_answers_is_left_for_the_index(hub, card, parts, seen, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "ANSWER_S", 3.0)  # pip takes a second to start
    Hub.silent = True
    with serving(simple_index(parts)) as index:
        monkeypatch.setenv("PIP_INDEX_URL", f"{index.url}/simple/")
        get(card.model_copy(update={"hub": "someone/tiny"}), tmp_path, seen)
    assert (tmp_path / "tiny" / NAME).read_bytes() == DATA
    assert any("this source failed" in line and "someone/tiny" in line for line in seen.lines)


def test_an_offline_hub_is_not_asked(hub, seen, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        get(make_card("qwen2"), tmp_path, seen)
    assert Hub.asked == []
