"""Knows how a canvas that is being denoised is told to an editor. Knows nothing of how it is drawn."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fimserver.front.documents.mirror import Snapshot
from fimserver.front.host_client import Watch
from fimserver.front.lsp import items
from fimserver.types import Slot

if TYPE_CHECKING:
    from fimserver.front.lsp.server import Server

CANVAS = "fimserver/canvas"


def preview(server: Server, snapshot: Snapshot) -> Watch | None:
    """Who sends each canvas, where the editor wants that. No slots, where some were sent before: it is over."""
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
