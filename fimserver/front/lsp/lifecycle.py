"""Lifecycle handlers: initialize, change of settings or workspace folders, shutdown."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from lsprotocol import types as lsp

from fimserver.front.config import Config, changed, named, setting_problems
from fimserver.front.documents.mirror import Encoding
from fimserver.front.documents.uris import path_of
from fimserver.front.lsp import items
from fimserver.front.lsp.inline_completion import menu_completion
from fimserver.front.lsp.server import Server

log = logging.getLogger("fimserver.front")
ANSWER_S = 5.0  # how long the editor may take to answer a request
ENCODINGS: dict[str, Encoding] = {"utf-8": "utf-8", "utf-16": "utf-16", "utf-32": "utf-32"}


def initialize(server: Server, params: lsp.InitializeParams) -> None:
    """Read the editor's capabilities, folders and settings."""
    capabilities = params.capabilities
    server.session.encoding = _encoding(capabilities)
    name = params.client_info.name if params.client_info else ""
    server.from_line_start = name.startswith(items.FROM_LINE_START)
    text = capabilities.text_document
    menu = text.completion if text else None
    item = menu.completion_item if menu else None
    server.insert_replace = bool(item and item.insert_replace_support)
    uris = [folder.uri for folder in params.workspace_folders or ()] or [params.root_uri or ""]
    server.session.set_roots([path for path in map(path_of, uris) if path])
    server.session.start, _ = changed(server.session.config, params.initialization_options)
    note_problems(server, params.initialization_options)
    server.session.configure(server.session.start)
    has_ghost_text = bool(text and text.inline_completion)
    wanted = server.session.config.menu
    is_wanted = wanted == "always" or (wanted == "auto" and not has_ghost_text)
    if is_wanted and lsp.TEXT_DOCUMENT_COMPLETION not in server.protocol.fm.features:
        server.offer(lsp.TEXT_DOCUMENT_COMPLETION, menu_completion, lsp.CompletionOptions())


def _encoding(capabilities: lsp.ClientCapabilities) -> Encoding:
    """Return the client's preferred encoding, which pygls announces; UTF-16 for an unknown one."""
    offered = (capabilities.general.position_encodings if capabilities.general else None) or ["utf-16"]
    first = offered[0]
    return ENCODINGS.get(getattr(first, "value", first), "utf-16")


def initialized(server: Server, _: lsp.InitializedParams) -> None:
    server.later(pull_configuration(server))
    server.later(server.status.watch())


def shutdown(server: Server, _: Any = None) -> None:
    server.stop_later()
    server.reading.stop()
    server.later(server.session.shut())


def did_change_folders(server: Server, params: lsp.DidChangeWorkspaceFoldersParams) -> None:
    removed = {path_of(folder.uri) for folder in params.event.removed}
    added = [path for folder in params.event.added if (path := path_of(folder.uri))]
    server.session.set_roots([*(root for root in server.session.roots if root not in removed), *added])


def did_change_configuration(server: Server, params: lsp.DidChangeConfigurationParams) -> None:
    sent = params.settings if isinstance(params.settings, dict) else None
    if sent and "fimserver" in sent:
        configure(server, sent["fimserver"])
    else:
        server.later(pull_configuration(server))


async def pull_configuration(server: Server) -> None:
    """Ask the editor for the settings section ``fimserver``, if it supports that."""
    workspace = server.client_capabilities.workspace
    if workspace is None or not workspace.configuration:
        return
    params = lsp.ConfigurationParams(items=[lsp.ConfigurationItem(section="fimserver")])
    try:
        async with asyncio.timeout(ANSWER_S):
            answer = await server.workspace_configuration_async(params)
    except Exception as error:  # noqa: BLE001 - the settings remain unchanged
        log.info("no configuration: %s", type(error).__name__)
        return
    configure(server, answer[0] if answer else None)


def configure(server: Server, sent: Any) -> None:
    """Replace the editor's settings: a missing one gets its initial value.

    Logs unknown names and unusable values. A value pinned by a command holds until its setting changes.
    """
    if not isinstance(sent, dict):
        return  # the editor has no settings for us
    session = server.session
    session.pins = {
        name: value for name, value in session.pins.items() if named(sent, name) == named(session.sent, name)
    }
    session.sent = sent
    note_problems(server, sent)
    _hold(server, changed(session.start, sent)[0])


def note_problems(server: Server, sent: Any) -> None:
    """Log settings without effect, each once, and keep them for ``fimserver/health``."""
    known = server.session.setting_problems
    problems = setting_problems(sent)
    for problem in problems:
        if problem not in known:
            log.warning("setting %s", problem)
    server.session.setting_problems = problems


def pin(server: Server, **values: Any) -> None:
    """Pin values set by a command; they override the settings."""
    server.session.pins |= values
    _hold(server, changed(server.session.start, server.session.sent)[0])


def _hold(server: Server, config: Config) -> None:
    config = config.model_copy(update=server.session.pins)
    if config != server.session.config:
        was_on = server.session.config.enabled
        server.session.configure(config)
        server.status.renew()
        if config.enabled and not was_on:
            server.later(server.status.watch())
