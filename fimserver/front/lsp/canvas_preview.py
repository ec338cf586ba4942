"""Canvas preview: sends the canvas of each denoising step to the editor."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fimserver.front.documents.mirror import Snapshot
from fimserver.front.host_client import Watch
from fimserver.front.lsp import items
from fimserver.front.lsp.server import Server
from fimserver.types import Slot

CANVAS = "fimserver/canvas"


def preview(server: Server, snapshot: Snapshot) -> Watch | None:
    """Return a function that sends each canvas, if the editor wants it. An empty canvas ends the preview."""
    if not server.session.config.preview:
        return None
    at = items.position(snapshot, snapshot.place, server.session.encoding)
    place: dict[str, Any] = {"uri": snapshot.uri, "position": {"line": at.line, "character": at.character}}
    step = 0

    def watch(slots: tuple[Slot, ...]) -> None:
        nonlocal step
        if slots or step:
            step = step + 1 if slots else 0
            server.protocol.notify(CANVAS, place | {"step": step, "slots": [asdict(slot) for slot in slots]})

    return watch
