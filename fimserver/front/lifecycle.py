"""Knows how a window begins, changes its settings and ends. Knows nothing of documents."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from lsprotocol import types as lsp

from fimserver.front import items
from fimserver.front.config import changed
from fimserver.front.documents import Encoding
from fimserver.front.privacy import path_of
from fimserver.front.suggest import menu_completion

if TYPE_CHECKING:
    from fimserver.front.server import Server

log = logging.getLogger("fimserver.front")
ENCODINGS: dict[str, Encoding] = {"utf-8": "utf-8", "utf-16": "utf-16", "utf-32": "utf-32"}


def initialize(server: Server, params: lsp.InitializeParams) -> None:
    capabilities = params.capabilities
    server.session.encoding = _encoding(capabilities)
    name = params.client_info.name if params.client_info else ""
    server.from_line_start = name.startswith(items.FROM_LINE_START)
    text = capabilities.text_document
    menu = text.completion if text else None
    item = menu.completion_item if menu else None
    server.insert_replace = bool(item and item.insert_replace_support)
    uris = [folder.uri for folder in params.workspace_folders or ()] or [params.root_uri or ""]
    server.session.look_at([path for path in map(path_of, uris) if path])
    configure(server, params.initialization_options)
    has_ghost_text = bool(text and text.inline_completion)
    wanted = server.session.config.menu
    if wanted == "always" or (wanted == "auto" and not has_ghost_text):
        server.offer(lsp.TEXT_DOCUMENT_COMPLETION, menu_completion, lsp.CompletionOptions())


def _encoding(capabilities: lsp.ClientCapabilities) -> Encoding:
    """The first encoding of the client's that we know, as pygls announces it."""
    offered = (capabilities.general.position_encodings if capabilities.general else None) or ["utf-16"]
    first = offered[0]
    return ENCODINGS.get(getattr(first, "value", first), "utf-16")


def initialized(server: Server, _: lsp.InitializedParams) -> None:
    server.later(pull_configuration(server))
    server.later(server.status.watch(server))


def shutdown(server: Server, _: Any = None) -> None:
    server.later(server.session.shut())


def did_change_folders(server: Server, params: lsp.DidChangeWorkspaceFoldersParams) -> None:
    removed = {path_of(folder.uri) for folder in params.event.removed}
    added = [path for folder in params.event.added if (path := path_of(folder.uri))]
    server.session.look_at([*(root for root in server.session.roots if root not in removed), *added])


def did_change_configuration(server: Server, params: lsp.DidChangeConfigurationParams) -> None:
    sent = params.settings if isinstance(params.settings, dict) else None
    if sent and "fimserver" in sent:
        configure(server, sent["fimserver"])
    else:
        server.later(pull_configuration(server))


async def pull_configuration(server: Server) -> None:
    """Ask the editor for the section ``fimserver``, where it can be asked."""
    workspace = server.client_capabilities.workspace
    if workspace is None or not workspace.configuration:
        return
    params = lsp.ConfigurationParams(items=[lsp.ConfigurationItem(section="fimserver")])
    try:
        async with asyncio.timeout(5):
            answer = await server.workspace_configuration_async(params)
    except Exception as error:  # noqa: BLE001 - an editor that cannot answer keeps what there is
        log.info("no configuration: %s", type(error).__name__)
        return
    configure(server, answer[0] if answer else None)


def configure(server: Server, sent: Any) -> None:
    """Take over what an editor sent. What makes no sense is named in the log."""
    config, bad = changed(server.session.config, sent)
    if bad:
        log.warning("settings without effect: %s", ", ".join(bad))
    if config != server.session.config:
        server.session.configure(config)
