"""Text synchronisation handlers: documents, notebooks and their edits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lsprotocol import types as lsp

from fimserver.front.documents.mirror import Document, Edit
from fimserver.front.documents.notebooks import Cell
from fimserver.front.lsp.server import Server
from fimserver.front.lsp.tolerance import NO_VERSION


def did_open(server: Server, params: lsp.DidOpenTextDocumentParams) -> None:
    got = params.text_document
    server.session.open(Document(got.uri, str(got.language_id), got.version, got.text))


def did_change(server: Server, params: lsp.DidChangeTextDocumentParams) -> None:
    _change(server, params.text_document, params.content_changes)


def _change(
    server: Server,
    named: lsp.VersionedTextDocumentIdentifier,
    changes: Iterable[lsp.TextDocumentContentChangeEvent],
) -> None:
    document = server.session.documents.get(named.uri)
    version = document.version if document and named.version == NO_VERSION else named.version
    server.session.change(named.uri, version, [_edit(change) for change in changes])


def _edit(change: lsp.TextDocumentContentChangeEvent) -> Edit:
    span = getattr(change, "range", None)
    if span is None:
        return Edit(None, None, change.text)
    return Edit((span.start.line, span.start.character), (span.end.line, span.end.character), change.text)


def did_close(server: Server, params: lsp.DidCloseTextDocumentParams) -> None:
    server.session.close(params.text_document.uri)


def did_open_notebook(server: Server, params: lsp.DidOpenNotebookDocumentParams) -> None:
    server.session.notebooks.open(
        params.notebook_document.uri, [_cell(cell) for cell in params.notebook_document.cells]
    )
    for got in params.cell_text_documents:
        server.session.open(Document(got.uri, str(got.language_id), got.version, got.text))


def _cell(cell: lsp.NotebookCell) -> Cell:
    return Cell(cell.document, cell.kind == lsp.NotebookCellKind.Code)


def did_change_notebook(server: Server, params: lsp.DidChangeNotebookDocumentParams) -> None:
    cells = params.change.cells
    if cells is None:
        return
    if cells.structure:
        new = cells.structure.array
        added = [_cell(cell) for cell in new.cells or ()]
        server.session.notebooks.splice(params.notebook_document.uri, new.start, new.delete_count, added)
        for got in cells.structure.did_open or ():
            server.session.open(Document(got.uri, str(got.language_id), got.version, got.text))
        for gone in cells.structure.did_close or ():
            server.session.close(gone.uri)
    for edited in cells.text_content or ():
        _change(server, edited.document, edited.changes)


def did_close_notebook(server: Server, params: lsp.DidCloseNotebookDocumentParams) -> None:
    gone = server.session.notebooks.close(params.notebook_document.uri)
    for uri in {*gone, *(cell.uri for cell in params.cell_text_documents)}:
        server.session.close(uri)


NAMED_BY = {
    lsp.TEXT_DOCUMENT_DID_OPEN: "textDocument",
    lsp.TEXT_DOCUMENT_DID_CHANGE: "textDocument",
    lsp.NOTEBOOK_DOCUMENT_DID_OPEN: "notebookDocument",
    lsp.NOTEBOOK_DOCUMENT_DID_CHANGE: "notebookDocument",
}


def bad_params(server: Server, method: str, params: Any) -> None:
    """Mark the document of an unreadable change as dirty, or all documents if it does not name one."""
    if method not in NAMED_BY:
        return
    named = params.get(NAMED_BY[method]) if isinstance(params, dict) else None
    uri = named.get("uri") if isinstance(named, dict) else None
    if isinstance(uri, str):
        lost(server, {uri, *server.session.notebooks.cells_of(uri)})
    else:
        lost(server)


def lost(server: Server, uris: Iterable[str] | None = None) -> None:
    """Mark documents (by default all) as dirty: their text is unknown."""
    documents = server.session.documents
    for uri in documents if uris is None else documents.keys() & uris:
        documents[uri].dirty = True
