"""Silent connections: closed in time, do not block others, do not flood the log."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from fimserver.host.http import connections
from tests.hosts import ScriptedHost

PATIENCE_S = 60.0
ROOT = Path(__file__).parent.parent.parent.parent


@pytest.fixture
def host():
    with ScriptedHost() as host:
        host.says("x")
        yield host


def connect(host):
    return socket.create_connection(("127.0.0.1", int(host.url.rsplit(":", 1)[1])), PATIENCE_S)


def healthy(host):
    with httpx2.Client(base_url=host.url, trust_env=False, timeout=PATIENCE_S) as client:
        return client.post("/v1/completions", json={"prompt": "a"}).status_code == 200


def is_closed(line):
    try:
        return line.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    ("files", "connections_", "at_once"), [(128, 64, 8), (1024, 512, 64), (1 << 20, 1000, 128)]
)
def test_most_files_are_left_for_the_rest_of_the_host(monkeypatch, files, connections_, at_once):
    monkeypatch.setattr(connections.resource, "getrlimit", lambda _: (files, files))
    assert connections.max_connections() == connections_
    assert connections.accepted_at_once() == at_once
    assert connections_ + 3 * at_once < files  # accepted, made, and those that are being closed


@pytest.mark.parametrize(
    "sent", [b"", b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n", b"G", b"GET /health HTTP/1.1\r\nX: "]
)
def test_headers_that_never_end_are_not_waited_for(host, monkeypatch, sent):
    monkeypatch.setattr(connections, "HEADER_S", 0.2)
    with connect(host) as line:
        line.sendall(sent)
        assert is_closed(line)


def test_a_second_request_has_the_same_deadline(host, monkeypatch):
    monkeypatch.setattr(connections, "HEADER_S", 0.5)
    with connect(host) as line:
        line.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = line.recv(65536)
        while b"}" not in answer:  # head and body may arrive apart
            answer += line.recv(65536)
        line.sendall(b"GET /health HTTP/1.1\r\nX:")
        assert is_closed(line)  # uvicorn's own limit for idle connections ends with the first byte


def test_a_request_in_progress_outlives_the_deadline_of_headers(host, monkeypatch):
    monkeypatch.setattr(connections, "HEADER_S", 0.1)
    host.says("x", 0.5, "y")
    assert healthy(host)


def test_who_is_silent_is_not_in_the_way_of_others(host, monkeypatch):
    monkeypatch.setattr(connections, "max_connections", lambda: 5)
    with ExitStack() as lines:
        silent = [lines.enter_context(connect(host)) for _ in range(20)]
        assert healthy(host)
        assert all(map(is_closed, silent[:15]))  # those that were silent longest


def test_an_answer_in_progress_is_not_cut_for_newcomers(host, monkeypatch):
    monkeypatch.setattr(connections, "max_connections", lambda: 2)
    host.says("x", 1.0, "y")
    with ExitStack() as lines, connect(host) as busy:
        busy.sendall(b'POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n{"prompt": "a"}')
        end = time.monotonic() + PATIENCE_S
        while not host.engines.asked:
            assert time.monotonic() < end
            time.sleep(0.005)
        for _ in range(10):
            lines.enter_context(connect(host))
        assert busy.recv(65536).startswith(b"HTTP/1.1 200")


def test_faults_of_the_loop_are_logged_once_and_without_their_message(caplog):
    async def fail():
        loop = asyncio.get_running_loop()
        connections.quiet_loop(loop)
        for _ in range(1000):
            loop.call_exception_handler({"message": "accept failed", "exception": OSError("canary")})

    asyncio.run(fail())
    assert [record.getMessage() for record in caplog.records] == ["event loop: accept failed (OSError)"]


FEW_FILES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
from fimserver.host import listen
from fimserver.host.fake import FakeEngines
from fimserver.settings import Settings

listen.load_models = lambda settings: FakeEngines()
sys.exit(listen.run_tcp(Settings(), "127.0.0.1:0", "t", frozenset(), lambda urls: print(urls[0], flush=True)))
"""


def test_a_host_with_few_files_serves_beside_hundreds_of_silent_connections(tmp_path):
    with (tmp_path / "err").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", FEW_FILES],
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
            cwd="/",
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
    try:
        url = process.stdout.readline().strip()
        address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
        with ExitStack() as lines:
            for _ in range(300):
                lines.enter_context(socket.create_connection(address, PATIENCE_S))
            right = {"Authorization": "Bearer t"}
            with httpx2.Client(base_url=url, trust_env=False, timeout=PATIENCE_S, headers=right) as client:
                for _ in range(3):
                    assert client.post("/v1/completions", json={"prompt": "a"}).status_code == 200
        assert "system resource" not in (tmp_path / "err").read_text()  # files are left for models and logs
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
        process.stdout.close()
    assert (tmp_path / "err").stat().st_size < 10_000
