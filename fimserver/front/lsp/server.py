"""Server of one editor window: pygls' server with our protocol, a session and the editor's capabilities."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from lsprotocol import types as lsp
from pygls.lsp.server import LanguageServer

from fimserver import __version__
from fimserver.front.config import Config
from fimserver.front.host_client import HostClient
from fimserver.front.lsp.protocol import Protocol, Send
from fimserver.front.lsp.status import Status
from fimserver.front.read_ahead import ReadAhead
from fimserver.front.session import Session

log = logging.getLogger("fimserver.front")
Handler = Callable[["Server", Any], Any]


class Server(LanguageServer):
    """Server of one window. ``methods.make_server`` makes one and registers the handlers."""

    protocol: Protocol

    def __init__(self, config: Config, host: HostClient, send: Send, leave: Callable[[int], None]) -> None:
        cells = lsp.NotebookDocumentFilterWithCells(cells=[lsp.NotebookCellLanguage(language="*")])
        super().__init__(
            "fimserver",
            __version__,
            protocol_cls=Protocol,
            text_document_sync_kind=lsp.TextDocumentSyncKind.Incremental,
            notebook_document_sync=lsp.NotebookDocumentSyncOptions(notebook_selector=[cells]),
        )
        self.session = Session(config, host)
        self.reading = ReadAhead(self.session)
        self.status = Status(self, self.session, self.later)
        self.from_line_start = False  # whether the range of an item starts at the start of its line
        self.insert_replace = False
        self.protocol.send = send
        self.protocol.leave = leave
        self._tasks: set[asyncio.Task[None]] = set()

    def offer(self, method: str, handler: Handler, options: Any = None) -> None:
        """Register the handler of a method."""
        self.feature(method, options)(partial(handler, self))

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in the background."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop_later(self) -> None:
        """Cancel the background tasks."""
        for task in list(self._tasks):
            task.cancel()

    def report_server_error(self, error: Exception, source: Any) -> None:  # noqa: ARG002 - pygls' signature
        """Log an error that pygls reports, instead of showing a popup."""
        log.error("pygls reports %s", type(error).__name__)
