"""Typing traces as a real Neovim sends them.

The keys of made traces are pressed in it, `fimserver ab record` writes them down.

python -m bench.record_traces TRACE.jsonl [...] --out FOLDER

The pauses are those of the given traces (``make_traces``), so the keys come at a made-up pace; what reaches
the server, and when it is asked for suggestions, is the editor's own doing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from fimserver.ab.items.traces import Change, Open, Trace, read_trace
from tests.editors.neovim import Neovim

XDG = ("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME")


def record(trace: Trace, out: Path, folder: Path) -> None:
    """Press the keys of a trace that was made: one document, each edit an insertion at the cursor."""
    opened, *changes = trace.events
    assert isinstance(opened, Open)
    env = {name: str(folder / name.lower()) for name in XDG} | {"FIMSERVER_IDLE_EXIT_MINUTES": "0.5"}
    for path in map(Path, list(env.values())[: len(XDG)]):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    command = [sys.executable, "-m", "fimserver.cli", "ab", "record", str(out)]
    with Neovim(folder, command, env) as editor:
        editor.open(opened.name, opened.text.encode())
        first = changes[0]
        assert isinstance(first, Change)
        editor.normal_mode()
        editor.keys(f"{first.edits[0].line + 1}GA")
        editor.wait("insert mode", lambda: editor.mode() == "i")
        begin = time.monotonic()
        for change in changes:
            assert isinstance(change, Change)
            time.sleep(max(0.0, begin + change.t_ms / 1000 - time.monotonic()))
            editor.keys(change.edits[0].text.replace("<", "<lt>").replace("\n", "<CR>"))
        editor.normal_mode()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Typing traces as a real Neovim sends them.")
    parser.add_argument("traces", nargs="+", type=Path, metavar="TRACE.jsonl")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for path in options.traces:
        with tempfile.TemporaryDirectory(prefix="fim") as folder:
            record(read_trace(path), options.out / path.name, Path(folder))
        recorded = read_trace(options.out / path.name)
        print(f"{path.name}: {len(recorded.events)} events")


if __name__ == "__main__":
    main()
