"""Measure the time that the language server adds to the engine's, over real pipes, with a host and nano.

python -m bench.front            prints a table and writes bench/results/front.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from fimserver.front.documents.mirror import Document, Edit
from tests.editor import Editor

RESULTS = Path(__file__).parent / "results" / "front.json"
CODE = Path(argparse.__file__).read_text("utf-8")  # of the standard library
URI = "file:///bench/work.py"
STARTS, KEYS, REQUESTS, CANCELS, NO_OPS = 20, 2000, 60, 60, 200


def percentile(values: list[float], share: int) -> float:
    return quantiles(values, n=100, method="inclusive")[share - 1]


def ms_of(work: Any) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def start_up() -> dict[str, float]:
    """Measure the time from process start to the answer to ``initialize``, and the memory used then."""

    def once() -> float:
        started = time.perf_counter()
        with Editor("pipes", "http://127.0.0.1:9") as editor:
            editor.start()
            return (time.perf_counter() - started) * 1000

    times = [once() for _ in range(STARTS)]
    return {"initialize p50 ms": percentile(times, 50), "initialize p95 ms": percentile(times, 95)}


def mirror() -> dict[str, float]:
    """Measure one key in the middle of a long and of a short file, in process."""

    def key_ms(lines: int) -> float:
        document = Document("u", "python", 1, "value = compute(1)\n" * lines)
        edits = [[Edit((lines // 2, 3), (lines // 2, 3), "x")] for _ in range(KEYS)]
        return ms_of(lambda: [document.change(2, edit, "utf-16") for edit in edits]) / KEYS

    long, short = min(key_ms(50_000) for _ in range(3)), min(key_ms(300) for _ in range(3))
    return {"key in 50,000 lines ms": long, "ratio to 300 lines": long / short}


class Typist:
    """A simulated user who types a line repeatedly, each time at another place, so that no cache hits."""

    def __init__(self, editor: Editor) -> None:
        self.editor, self.version, self.count = editor, 1, 0
        self.line = CODE.split("\n").index("class Namespace(_AttributeHolder):")
        editor.open(URI, CODE)

    def types(self) -> tuple[int, int]:
        """Replace the last line by a new one; returns the cursor after it."""
        self.version, self.count = self.version + 1, self.count + 1
        text = f"    value_{self.count} = "
        end = (self.line + 1, 0) if self.count > 1 else (self.line, 0)
        self.editor.edit(URI, self.version, (self.line, 0), end, text + "\n")
        return self.line, len(text)


def requests(editor: Editor, typist: Typist) -> dict[str, float]:
    """Measure request to answer, less the engine's own time, and the same for an answer from memory."""
    overheads, memory = [], []
    for _ in range(REQUESTS):
        line, column = typist.types()
        time.sleep(0.4)  # nobody waits for a next key, and the follow-up is done
        total = ms_of(partial(editor.ask, URI, line, column))
        said = editor.explain()
        if said.get("engineMs"):
            overheads.append(total - said["engineMs"])
        if said["shown"]:
            memory.append(ms_of(partial(editor.ask, URI, line, column)))
    return {
        "overhead p50 ms": percentile(overheads, 50),
        "overhead p95 ms": percentile(overheads, 95),
        "memory hit p50 ms": percentile(memory, 50),
        "memory hit p95 ms": percentile(memory, 95),
    }


def cancels(editor: Editor, typist: Typist) -> dict[str, float]:
    """Measure ``$/cancelRequest`` to its answer, while the engine works."""
    times = []
    for _ in range(CANCELS):
        line, column = typist.types()
        time.sleep(0.2)
        request = editor.post("textDocument/inlineCompletion", editor.params(URI, line, column, invoked=True))
        time.sleep(0.03)

        def cancel(request: int = request) -> None:
            editor.notify("$/cancelRequest", {"id": request})
            editor.answer(request)

        times.append(ms_of(cancel))
    return {"cancel p50 ms": percentile(times, 50), "cancel p99 ms": percentile(times, 99)}


def no_ops(editor: Editor, typist: Typist) -> dict[str, float]:
    """Measure a request that does nothing, while the engine works without a pause."""
    times: list[float] = []
    while len(times) < NO_OPS:
        line, column = typist.types()
        request = editor.post("textDocument/inlineCompletion", editor.params(URI, line, column, invoked=True))
        while request not in editor.answers and len(times) < NO_OPS:
            times.append(ms_of(editor.explain))
        editor.answer(request)
    return {"no-op p50 ms": percentile(times, 50), "no-op p99 ms": percentile(times, 99)}


def rss_mb(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 1e6


def hosts(folder: str) -> list[psutil.Process]:
    """The model hosts of the run."""
    found = psutil.process_iter(["cmdline", "environ"])
    ours = (p for p in found if (p.info["environ"] or {}).get("XDG_RUNTIME_DIR") == folder)
    return [p for p in ours if "host" in (p.info["cmdline"] or [])]


def measure() -> dict[str, float]:
    """Run all measurements, with a host that is private to the run."""
    rows = start_up() | mirror()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder
        Path(folder).chmod(0o700)
        with Editor("pipes") as editor:
            editor.start(options={"prefetch": True, "delayMs": 0})
            typist = Typist(editor)
            editor.wait_until(
                lambda: editor.ask(URI, *typist.types()) is not None and editor.explain().get("engineMs")
            )
            rows |= requests(editor, typist) | cancels(editor, typist) | no_ops(editor, typist)
            rows["front RSS MB"] = rss_mb(psutil.Process(editor.link.process.pid))
            rows["host RSS MB, one window"] = sum(map(rss_mb, hosts(folder)))
            with Editor("pipes") as other:
                other.start()
                other.wait_until(
                    lambda: (
                        other.ask(URI, *Typist(other).types()) is not None and other.explain().get("engineMs")
                    )
                )
                rows["host RSS MB, two windows"] = sum(map(rss_mb, hosts(folder)))
                other.leave()
            editor.leave()
        for process in hosts(folder):
            process.terminate()
    return rows


def main() -> None:
    os.environ |= {"FIMSERVER_AR_CARD": "nano", "FIMSERVER_DLLM_CARD": "nano"}  # whatever coder is here
    rows = measure()
    table = Table("quantity", "value", title="language server, over pipes, nano")
    for name, value in rows.items():
        table.add_row(name, f"{value:.3f}" if value < 1 else f"{value:.1f}")
    Console().print(table)
    machine = {"python": platform.python_version(), "cpus": os.cpu_count(), "processor": platform.processor()}
    RESULTS.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
