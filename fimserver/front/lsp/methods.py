"""Methods of the language server, one line each, and the function that makes a server with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from lsprotocol import types as lsp

from fimserver.front.config import Config
from fimserver.front.host_client import HostClient
from fimserver.front.lsp import commands, inline_completion, lifecycle, text_sync
from fimserver.front.lsp.health import examine
from fimserver.front.lsp.protocol import Send
from fimserver.front.lsp.server import Handler, Server

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


def make_server(config: Config, host: HostClient, send: Send, leave: Callable[[int], None]) -> Server:
    """Make a server with all methods and commands. ``send`` takes message bodies, ``leave`` an exit code."""
    server = Server(config, host, send, leave)
    server.protocol.on_bad_params = partial(text_sync.bad_params, server)
    server.protocol.on_lost = partial(text_sync.lost, server)
    for method, handler in METHODS.items():
        server.offer(method, handler)
    server.offer(
        lsp.TEXT_DOCUMENT_INLINE_COMPLETION,
        inline_completion.inline_completion,
        lsp.InlineCompletionOptions(),
    )
    for name, command in commands.COMMANDS.items():
        server.command(f"fimserver.{name}")(partial(command, server))
    return server
