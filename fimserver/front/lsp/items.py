"""Knows how a suggestion looks on the wire, for inline completion and for the completion menu. Knows nothing of models."""

from __future__ import annotations

from collections.abc import Iterable

from lsprotocol import types as lsp

from fimserver.front.documents.mirror import Encoding, Position, Snapshot, units_of
from fimserver.front.outcome import Suggestion

ACCEPTED = "fimserver.accepted"
LABEL_CHARS = 60
# Clients that draw a suggestion best when its range starts where the line starts (vscode#208152).
FROM_LINE_START = ("Visual Studio Code", "VSCodium", "code-server", "Code - OSS", "Cursor", "Windsurf")


def inline_list(
    snapshot: Snapshot, suggestions: Iterable[Suggestion], encoding: Encoding, start: Position | None, *, from_line_start: bool
) -> lsp.InlineCompletionList:
    """Always the list form: some clients take nothing else for "no suggestion"."""
    items = [_inline(snapshot, s, encoding, start, from_line_start=from_line_start) for s in suggestions]
    return lsp.InlineCompletionList(items=items)


def _inline(
    snapshot: Snapshot, suggestion: Suggestion, encoding: Encoding, start: Position | None, *, from_line_start: bool
) -> lsp.InlineCompletionItem:
    begin = start or snapshot.place
    lead = ""
    if from_line_start:
        lead = snapshot.lines[begin.line][: begin.column]
        begin = Position(begin.line, 0)
    return lsp.InlineCompletionItem(
        insert_text=lead + suggestion.text,
        filter_text=snapshot.lines[begin.line][begin.column : snapshot.place.column],
        range=lsp.Range(position(snapshot, begin, encoding), _end(snapshot, suggestion, encoding)),
        command=accepted_command(suggestion),
    )


def menu_list(
    snapshot: Snapshot, suggestions: Iterable[Suggestion], encoding: Encoding, *, insert_replace: bool
) -> lsp.CompletionList:
    """The same for clients without ghost text. Incomplete, so that the menu is asked for again at the next key."""
    items = [_menu(snapshot, suggestion, encoding, insert_replace=insert_replace) for suggestion in suggestions]
    return lsp.CompletionList(is_incomplete=True, items=items)


def _menu(snapshot: Snapshot, suggestion: Suggestion, encoding: Encoding, *, insert_replace: bool) -> lsp.CompletionItem:
    before = snapshot.line_before
    word = before[len(before.rstrip("_" + _WORD)) :]
    begin = Position(snapshot.place.line, snapshot.place.column - len(word))
    text = word + suggestion.text
    start, cursor = position(snapshot, begin, encoding), position(snapshot, snapshot.place, encoding)
    whole = lsp.Range(start, _end(snapshot, suggestion, encoding))
    # Never insert without replacing: what the text repeats of the line would stand there twice.
    splits = insert_replace and not suggestion.replace
    edit = lsp.InsertReplaceEdit(text, lsp.Range(start, cursor), whole) if splits else lsp.TextEdit(whole, text)
    first = text.strip().split("\n", 1)[0]
    return lsp.CompletionItem(
        label=first if len(first) <= LABEL_CHARS else first[: LABEL_CHARS - 1] + "…",
        label_details=lsp.CompletionItemLabelDetails(description="fimserver"),
        kind=lsp.CompletionItemKind.Text,
        filter_text=word or text,
        sort_text="~",  # below what a language's own server offers
        documentation=lsp.MarkupContent(lsp.MarkupKind.Markdown, f"```{snapshot.language}\n{text}\n```"),
        text_edit=edit,
        preselect=False,
        command=accepted_command(suggestion),
    )


_WORD = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def accepted_command(suggestion: Suggestion) -> lsp.Command:
    """What the editor runs after a suggestion was accepted in full: the only sign of it that all editors give."""
    return lsp.Command(title="accepted", command=ACCEPTED, arguments=[suggestion.suggestion_id])


def position(snapshot: Snapshot, place: Position, encoding: Encoding) -> lsp.Position:
    """A place on the wire."""
    return lsp.Position(place.line, units_of(snapshot.lines[place.line][: place.column], encoding))


def _end(snapshot: Snapshot, suggestion: Suggestion, encoding: Encoding) -> lsp.Position:
    row, column = snapshot.place
    return position(snapshot, Position(row, column + suggestion.replace), encoding)
