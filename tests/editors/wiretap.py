"""Wiretap between an editor and its language server: records when each message passed.

``python wiretap.py FOLDER COMMAND …`` runs the command in its place: bytes pass unchanged, and a file in FOLDER, named after
the process that asked, gets a JSON line for each message with its time, without text of documents.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

HEADER = re.compile(rb"\AContent-Length: *(\d+)\r\n(?:[^\r\n]+\r\n)*\r\n", re.IGNORECASE)


class Listener:
    """Messages out of one direction's bytes, as they pass."""

    def __init__(self, log, source):
        self._log, self._source, self._held = log, source, b""

    def feed(self, data):
        self._held += data
        while (head := HEADER.match(self._held)) and len(self._held) >= head.end() + int(head[1]):
            end = head.end() + int(head[1])
            self._write(json.loads(self._held[head.end() : end]))
            self._held = self._held[end:]

    def _write(self, message):
        params, result = message.get("params"), message.get("result")
        row = {
            "t": time.time(),
            "from": self._source,
            "id": message.get("id"),
            "method": message.get("method"),
        }
        if isinstance(params, dict):
            row |= {name: params[name] for name in ("position", "context") if name in params}
            row["uri"] = (params.get("textDocument") or {}).get("uri")
        if isinstance(result, dict) and "items" in result:
            row["items"] = len(result["items"])
        self._log.write(json.dumps(row) + "\n")
        self._log.flush()


def relay(source, target, listener):
    while data := os.read(source, 1 << 16):
        listener.feed(data)
        while data:
            data = data[os.write(target, data) :]
    os.close(target)


def main(folder, *command):
    path = Path(folder) / f"traffic-{os.getppid()}.jsonl"
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with path.open("a", encoding="utf-8") as log:
        inward = (0, child.stdin.fileno(), Listener(log, "editor"))
        threading.Thread(target=relay, args=inward, daemon=True).start()
        relay(child.stdout.fileno(), 1, Listener(log, "server"))
    os._exit(child.wait())


if __name__ == "__main__":
    main(*sys.argv[1:])
