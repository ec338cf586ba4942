"""LSP items of suggestions, for inline completion and for the completion menu."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from lsprotocol import types as lsp

from fimserver.front.documents.mirror import Encoding, Position, Snapshot, units_of
from fimserver.front.outcome import Suggestion

ACCEPTED = "fimserver.accepted"
LABEL_CHARS = 60
# Clients that render a suggestion best if its range starts at the start of the line (vscode#208152).
FROM_LINE_START = ("Visual Studio Code", "VSCodium", "code-server", "Code - OSS", "Cursor", "Windsurf")


def inline_list(
    snapshot: Snapshot, suggestions: Iterable[Suggestion], encoding: Encoding, *, from_line_start: bool
) -> lsp.InlineCompletionList:
    """Return items for ghost text, always as a list: some clients accept nothing else if it is empty."""
    items = [_inline(snapshot, s, encoding, from_line_start=from_line_start) for s in suggestions]
    return lsp.InlineCompletionList(items=items)


def _inline(
    snapshot: Snapshot, suggestion: Suggestion, encoding: Encoding, *, from_line_start: bool
) -> lsp.InlineCompletionItem:
    start = suggestion.start
    lead = ""
    if from_line_start:
        lead = snapshot.lines[start.line][: start.column]
        start = Position(start.line, 0)
    return lsp.InlineCompletionItem(
        insert_text=lead + suggestion.text,
        filter_text=snapshot.lines[start.line][start.column : snapshot.place.column],
        range=lsp.Range(position(snapshot, start, encoding), position(snapshot, suggestion.end, encoding)),
        command=accepted_command(suggestion),
    )


def menu_list(
    snapshot: Snapshot, suggestions: Iterable[Suggestion], encoding: Encoding, *, insert_replace: bool
) -> lsp.CompletionList:
    """Return items for clients without ghost text. Incomplete: the client asks again at the next key."""
    items = [
        _menu(snapshot, suggestion, encoding, insert_replace=insert_replace) for suggestion in suggestions
    ]
    return lsp.CompletionList(is_incomplete=True, items=items)


def _menu(
    snapshot: Snapshot, suggestion: Suggestion, encoding: Encoding, *, insert_replace: bool
) -> lsp.CompletionItem:
    word = typed_word(snapshot.line_before)
    text = word + suggestion.text
    start = position(snapshot, Position(suggestion.start.line, suggestion.start.column - len(word)), encoding)
    cursor = position(snapshot, snapshot.place, encoding)
    whole = lsp.Range(start, position(snapshot, suggestion.end, encoding))
    # Never insert without replacing: text that the suggestion repeats would be there twice.
    splits = insert_replace and suggestion.end == snapshot.place
    edit = (
        lsp.InsertReplaceEdit(text, lsp.Range(start, cursor), whole) if splits else lsp.TextEdit(whole, text)
    )
    first = text.strip().split("\n", 1)[0]
    return lsp.CompletionItem(
        label=first if len(first) <= LABEL_CHARS else first[: LABEL_CHARS - 1] + "…",
        label_details=lsp.CompletionItemLabelDetails(description="fimserver"),
        kind=lsp.CompletionItemKind.Text,
        filter_text=word or text,
        sort_text="~",  # below the items of the language's own server
        documentation=lsp.MarkupContent(lsp.MarkupKind.Markdown, fenced(text, snapshot.language)),
        text_edit=edit,
        preselect=False,
        command=accepted_command(suggestion),
    )


def typed_word(line_before: str) -> str:
    """Return the word, in any script, that ends at the cursor: clients filter menu items by it."""
    start = len(line_before)
    while start and is_word(line_before[start - 1]):
        start -= 1
    return line_before[start:]


def is_word(char: str) -> bool:
    """Whether a character is part of a word: letters, digits, marks on letters, connectors such as ``_``."""
    return unicodedata.category(char)[0] in "LNM" or unicodedata.category(char) == "Pc"


def fenced(text: str, language: str) -> str:
    """Return text as a Markdown code block, with a fence longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def accepted_command(suggestion: Suggestion) -> lsp.Command:
    """Return the command that the editor runs after a full acceptance: all editors support this report."""
    return lsp.Command(title="accepted", command=ACCEPTED, arguments=[suggestion.suggestion_id])


def position(snapshot: Snapshot, place: Position, encoding: Encoding) -> lsp.Position:
    """Convert a position to units of the wire encoding."""
    return lsp.Position(place.line, units_of(snapshot.lines[place.line][: place.column], encoding))
