"""Knows which LSP methods exist, one line for each. Knows nothing of what they do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any

from lsprotocol import types as lsp
from pygls.lsp.server import LanguageServer

from fimserver import __version__
from fimserver.front.config import Config
from fimserver.front.host_client import HostClient
from fimserver.front.lsp import commands, inline_completion, lifecycle, text_sync
from fimserver.front.lsp.health import examine
from fimserver.front.lsp.protocol import Protocol, Send
from fimserver.front.lsp.status import Status
from fimserver.front.session import Session

log = logging.getLogger("fimserver.front")
Handler = Callable[["Server", Any], Any]

METHODS: Mapping[str, Handler] = {
    lsp.INITIALIZE: lifecycle.initialize,
    lsp.INITIALIZED: lifecycle.initialized,
    lsp.SHUTDOWN: lifecycle.shutdown,
    lsp.WORKSPACE_DID_CHANGE_CONFIGURATION: lifecycle.did_change_configuration,
    lsp.WORKSPACE_DID_CHANGE_WORKSPACE_FOLDERS: lifecycle.did_change_folders,
    lsp.TEXT_DOCUMENT_DID_OPEN: text_sync.did_open,
    lsp.TEXT_DOCUMENT_DID_CHANGE: text_sync.did_change,
    lsp.TEXT_DOCUMENT_DID_CLOSE: text_sync.did_close,
    lsp.NOTEBOOK_DOCUMENT_DID_OPEN: text_sync.did_open_notebook,
    lsp.NOTEBOOK_DOCUMENT_DID_CHANGE: text_sync.did_change_notebook,
    lsp.NOTEBOOK_DOCUMENT_DID_CLOSE: text_sync.did_close_notebook,
    "fimserver/explain": commands.explain,
    "fimserver/stats": commands.stats,
    "fimserver/health": lambda server, _: examine(server),
    "textDocument/didFocus": commands.did_focus,
    "textDocument/didShowCompletion": commands.did_show,
    "textDocument/didPartiallyAcceptCompletion": commands.did_accept_partly,
}


class Server(LanguageServer):
    """pygls' server with our protocol, one session, and what is known of the editor."""

    protocol: Protocol

    def __init__(self, config: Config, line: HostClient, send: Send, leave: Callable[[int], None]) -> None:
        cells = lsp.NotebookDocumentFilterWithCells(cells=[lsp.NotebookCellLanguage(language="*")])
        super().__init__(
            "fimserver",
            __version__,
            protocol_cls=Protocol,
            text_document_sync_kind=lsp.TextDocumentSyncKind.Incremental,
            notebook_document_sync=lsp.NotebookDocumentSyncOptions(notebook_selector=[cells]),
        )
        self.session = Session(config, line)
        self.status = Status()
        self.from_line_start = False  # where an item's range has to start
        self.insert_replace = False
        self.protocol.send, self.protocol.leave = send, leave
        self.protocol.on_bad_params = partial(text_sync.bad_params, self)
        self.protocol.on_lost = partial(text_sync.lost, self)
        self._tasks: set[asyncio.Task[None]] = set()
        for method, handler in METHODS.items():
            self.offer(method, handler)
        self.offer(lsp.TEXT_DOCUMENT_INLINE_COMPLETION, inline_completion.inline_completion, lsp.InlineCompletionOptions())
        for name, command in commands.COMMANDS.items():
            self.command(f"fimserver.{name}")(partial(command, self))

    def offer(self, method: str, handler: Handler, options: Any = None) -> None:
        """Serve a method."""
        self.feature(method, options)(partial(handler, self))

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the messages."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop_later(self) -> None:
        """End what runs beside the messages."""
        for task in list(self._tasks):
            task.cancel()

    def report_server_error(self, error: Exception, source: Any) -> None:  # noqa: ARG002 - pygls' signature
        """Never a popup."""
        log.error("pygls reports %s", type(error).__name__)
