"""Reading ahead: while the cursor rests and the host is idle, prefills the prompt before the first key."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

from fimserver.front.documents.mirror import Position
from fimserver.front.gate import arrive
from fimserver.front.request import CompletionRequest, completion_body
from fimserver.front.session import Session

REST_S = 0.3  # how long the cursor must rest, without a key or a request
READ_S = 20.0  # deadline of the prefill, time in the queue included; any request ends it


class CursorRest(NamedTuple):
    """Where a cursor is. ``line`` and ``character`` are in the editor's encoding."""

    uri: str
    line: int
    character: int


class ReadAhead:
    """Reads ahead at the resting cursor of one window."""

    def __init__(self, session: Session, rest_s: float = REST_S) -> None:
        self._session = session
        self._rest_s = rest_s
        self._timer: asyncio.TimerHandle | None = None
        self._known: tuple[str, int, Position] | None = (
            None  # document, revision and place of the last prompt
        )

    def moved(self, cursor: CursorRest) -> None:
        """Note where the cursor is; its prompt is prefilled if it stays there."""
        self.stop()
        self._timer = asyncio.get_running_loop().call_later(self._rest_s, self._rested, cursor)

    def asked(self, request: CompletionRequest) -> None:
        """Note a request, which prefills its own prompt."""
        if request.refusal is None:
            self._known = (request.uri, request.snapshot.revision, request.snapshot.place)

    def stop(self) -> None:
        """Stop waiting for the cursor to rest."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _rested(self, cursor: CursorRest) -> None:
        session = self._session
        document = session.documents.get(cursor.uri)
        used_s = time.monotonic() - session.running.last_used_s
        if document is None or len(session.running) or used_s < self._rest_s:
            return
        place = document.place((cursor.line, cursor.character), session.encoding)
        request = arrive(session, document, place, invoked=False, surface="inline", waits=False)
        if request.refusal is not None or not request.prefetch:
            return
        known = self._known
        self.asked(request)
        if known != self._known:
            session.running.run_prefetch(self._read(request))

    async def _read(self, request: CompletionRequest) -> None:
        session = self._session
        text = session.context.text(request.snapshot, *request.cells)
        body = completion_body(request, session.context.build(text, request.snapshot, request.open_documents))
        warm = body.with_hints(idle=True).model_copy(update={"max_tokens": 0, "n": 1})
        await session.host.complete(warm, deadline_s=time.monotonic() + READ_S, asked=False)
