"""`fimserver models get` against a hub on this machine: whole, interrupted, and with a damaged file."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest

from fimserver import download
from fimserver.errors import LoadError, ModelMissingError
from tests.tiny import make_card, make_checkpoint

SHA = "a" * 40


class Hub(BaseHTTPRequestHandler):
    """The two endpoints that a download uses."""

    files: dict[str, bytes] = {}
    announced: dict[str, str] = {}

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._file(body=False)

    def do_GET(self):
        if self.path.startswith("/api/models/someone/tiny/tree/"):
            tree = [
                {
                    "type": "file",
                    "path": n,
                    "size": len(b),
                    "oid": "0" * 40,
                    "lfs": {"oid": self.announced[n], "size": len(b), "pointerSize": 100},
                }
                for n, b in self.files.items()
            ]
            return self._send(json.dumps(tree).encode(), {})
        if self.path.startswith("/api/models/someone/tiny"):
            siblings = [
                {"rfilename": n, "size": len(b), "blobId": _blob(b)}
                | ({"lfs": {"sha256": self.announced[n], "size": len(b), "pointerSize": 9}} if "model" in n else {})
                for n, b in self.files.items()
            ]
            return self._send(json.dumps({"id": "someone/tiny", "sha": SHA, "siblings": siblings}).encode(), {})
        return self._file(body=True)

    def _file(self, *, body):
        name = self.path.split(f"/resolve/{SHA}/")[-1].split("?")[0]
        data = self.files.get(name)
        if data is None:
            self.send_error(404)
            return
        etag = self.announced[name]
        self._send(data, {"X-Repo-Commit": SHA, "ETag": f'"{etag}"', "X-Linked-Size": str(len(data))}, body=body)

    def _send(self, data, headers, *, body=True):
        self.send_response(200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
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
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(download, "HfApi", lambda: huggingface_hub.HfApi(endpoint=endpoint))
    original = huggingface_hub.snapshot_download
    monkeypatch.setattr(download, "snapshot_download", lambda *a, **k: original(*a, **k, endpoint=endpoint))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    yield server
    server.shutdown()
    server.server_close()


def test_a_model_comes_verified_and_without_code(hub, tmp_path):
    folder = tmp_path / "models" / "tiny"
    files = download.get_model(make_card("qwen2"), folder)
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(files)
    assert not list(folder.glob("*.py"))
    assert not list(folder.glob("*.bin"))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["revision"] == SHA
    assert manifest["files"] == files


def test_a_file_that_differs_from_the_hub_is_refused_and_named(hub, tmp_path):
    Hub.files["model.safetensors"] = Hub.files["model.safetensors"][:-1] + b"\x01"
    folder = tmp_path / "models" / "tiny"
    with pytest.raises(LoadError, match=r"model\.safetensors"):
        download.get_model(make_card("qwen2"), folder)
    assert not folder.exists()


def test_a_file_that_differs_from_the_card_is_refused(hub, tmp_path):
    card = make_card("qwen2", files={"config.json": "0" * 64})
    with pytest.raises(LoadError, match=r"config\.json is not the file that is pinned"):
        download.get_model(card, tmp_path / "models" / "tiny")


def test_no_hub_is_a_clear_error(hub, tmp_path):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(ModelMissingError, match="could not be downloaded") as raised:
        download.get_model(make_card("qwen2"), tmp_path / "models" / "tiny")
    assert "\n" not in str(raised.value)


def test_an_unknown_revision_is_a_clear_error(hub, tmp_path):
    card = make_card("qwen2", hub="someone/else")
    with pytest.raises(ModelMissingError, match="someone/else"):
        download.get_model(card, tmp_path / "models" / "tiny")
