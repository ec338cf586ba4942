"""How soon a server is idle after its client hung up in the middle of an answer.

python -m bench.cancel URL … [--times 20] [--key KEY]

Each server is asked for a long answer as a stream; once two pieces of it are there, the connection is
closed, and the server is asked every 5 ms whether it still works: fimserver and vLLM by their Prometheus
figures, llama.cpp by ``/slots`` (off unless it was started with ``--slots``). With ``--gguf FILE`` servers
of that model are started, one after the other: llama.cpp (``xllamacpp``), ``fimserver serve``, and a
fimserver whose model is a llama.cpp, where the time is from the client of fimserver until llama.cpp is idle.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2

from fimserver.errors import InputError

PROMPT = "# A long module with many functions, each with a docstring.\n\n\ndef first(values):\n"
POLL_S = 0.005
START_S = 600.0  # a busy machine packs weights slowly
IDLE_S = 60.0
RUNNING = re.compile(r"^(?:fimserver_running|vllm:num_requests_running(?:\{.*\})?) (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Server:
    """A server, and the one that does its work: another, or itself."""

    name: str
    url: str
    works_at: str
    key: str = ""

    def client(self, url: str) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx2.Client(base_url=url, headers=headers, trust_env=False, timeout=START_S)


def is_idle_of(client: httpx2.Client) -> Callable[[], bool]:
    """How to see whether a server works. Raises ``InputError`` where it does not tell."""
    slots = client.get("/slots")
    if slots.status_code == 200 and isinstance(slots.json(), list):
        return lambda: not any(slot["is_processing"] for slot in client.get("/slots").json())
    if RUNNING.search(client.get("/metrics").text):
        return lambda: not any(map(float, RUNNING.findall(client.get("/metrics").text)))
    raise InputError(f"{client.base_url}: neither /slots nor /metrics says whether it works")


def idle_after_s(server: Server, *, tokens: int = 400) -> float:
    """Seconds from the end of the connection until nothing is computed any more."""
    body = {
        "prompt": PROMPT,
        "suffix": "\n",
        "max_tokens": tokens,
        "stream": True,
        "fimserver": {"stop": "none", "deadline_ms": 60_000},
    }
    with server.client(server.works_at) as looks, server.client(server.url) as asks:
        is_idle = is_idle_of(looks)
        wait_until(is_idle, server)  # fimserver measures its models after a start, while it is idle
        with asks.stream("POST", "/v1/completions", json=body) as answer:
            pieces = (line for line in answer.iter_lines() if line.startswith("data:"))
            for _ in range(2):
                next(pieces)
            if is_idle():
                raise InputError(f"{server.url} was idle before its answer ended: give a longer prompt")
            started = time.monotonic()
        wait_until(is_idle, server)
        return time.monotonic() - started


def wait_until(is_idle: Callable[[], bool], server: Server) -> None:
    """Wait. Raises ``InputError`` for a server that works on for a minute."""
    end = time.monotonic() + IDLE_S
    while not is_idle():
        if time.monotonic() > end:
            raise InputError(f"{server.works_at} works on {IDLE_S:.0f} s after its client hung up")
        time.sleep(POLL_S)


def row(server: Server, times: int) -> str:
    """One line of the table, in ms."""
    idle_after_s(server)  # the first also loads and warms up
    found = sorted(idle_after_s(server) * 1000 for _ in range(times))
    return f"| {server.name} | {statistics.median(found):.0f} | {found[0]:.0f} | {found[-1]:.0f} |"


def started(gguf: Path) -> Iterator[Server]:
    """Servers of one model, each in processes of its own that end before the next."""
    from tests.hosts import free_port
    from tests.servers_elsewhere import LlamaServer

    key = LlamaServer.KEY
    with LlamaServer(gguf, free_port()) as llama:
        yield Server("llama.cpp", llama.url, llama.url, key)
    with tempfile.TemporaryDirectory() as folder:
        with fimserver(Path(folder), free_port(), str(gguf), key) as url:
            yield Server("fimserver", url, url, key)
        with (
            LlamaServer(gguf, free_port()) as llama,
            fimserver(Path(folder), free_port(), llama.url, key) as url,
        ):
            yield Server("fimserver, then llama.cpp", url, llama.url, key)


@contextlib.contextmanager
def fimserver(folder: Path, port: int, card: str, key: str) -> Iterator[str]:
    """Run ``fimserver serve`` with a card, until its models are loaded."""
    url = f"http://127.0.0.1:{port}"
    keys = {"FIMSERVER_TOKEN": key, "FIMSERVER_REMOTE_KEY": key, "XDG_DATA_HOME": str(folder)}
    command = [sys.executable, "-m", "fimserver.cli", "serve", "--listen", f"127.0.0.1:{port}"]
    process = subprocess.Popen([*command, "--model", "ar", "--ar-card", card], env=os.environ | keys)
    try:
        wait_for(url, key)
        yield url
    finally:
        process.terminate()
        process.wait()


def wait_for(url: str, key: str) -> None:
    """Until a host has loaded its models. Raises ``InputError`` after ten minutes."""
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        with contextlib.suppress(httpx2.HTTPError):
            headers = {"Authorization": f"Bearer {key}"}
            if httpx2.get(f"{url}/health", headers=headers, trust_env=False).status_code == 200:
                return
        time.sleep(0.1)
    raise InputError(f"{url} did not start")


def main() -> None:
    """Print a table: median, least and most."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("urls", nargs="*")
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--key", default="")
    options = parser.parse_args()
    print("| server | idle after, ms: median | least | most |")
    print("| --- | --- | --- | --- |")
    for url in options.urls:
        print(row(Server(url, url, url, options.key), options.times), flush=True)
    if options.gguf:
        for server in started(options.gguf):
            print(row(server, options.times), flush=True)


if __name__ == "__main__":
    main()
