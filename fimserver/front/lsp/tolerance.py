"""Tolerance for clients of other protocol versions: fills in missing fields, leaves out unknown ones.

Fields are left out only of capabilities and requests, never of edits: the document would no longer equal the
editor's.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

import cattrs
from lsprotocol import types as lsp

NO_VERSION = -(2**31)  # an edit whose version is null or missing (LSP before 3.16)
DRAFT_INVOKED = 0  # ``Invoked`` in the drafts of LSP 3.18
MAX_LEFT_OUT = 1000
_FIELD = re.compile(r"\.(\w+)|\[(\d+)\]")

Path = tuple[str | int, ...]


def filled_in(method: str, params: Any) -> Any:
    """Return parameters with the fields filled in that some clients leave out or set to null."""
    return FILLED_IN[method](params) if method in FILLED_IN and isinstance(params, dict) else params


def _inline_context(params: dict[str, Any]) -> dict[str, Any]:
    """Treat a missing or unknown trigger kind as automatic."""
    context = params.get("context")
    context = dict(context) if isinstance(context, dict) else {}
    invoked = lsp.InlineCompletionTriggerKind.Invoked.value
    automatic = lsp.InlineCompletionTriggerKind.Automatic.value
    kind = context.get("triggerKind")
    is_known = isinstance(kind, int) and kind in {DRAFT_INVOKED, invoked, automatic}
    context["triggerKind"] = (kind or invoked) if is_known else automatic
    return params | {"context": context}


def _document(params: dict[str, Any]) -> dict[str, Any]:
    """Fill in version 0 and an empty language of an opened document."""
    opened = params.get("textDocument")
    if not isinstance(opened, dict):
        return params
    return params | {"textDocument": {"version": 0, "languageId": ""} | _without_nulls(opened)}


def _changes(params: dict[str, Any]) -> dict[str, Any]:
    """Fill in a missing version; drop null ranges, so that the edit replaces the whole text."""
    named = params.get("textDocument")
    edits = params.get("contentChanges")
    if isinstance(named, dict):
        params = params | {"textDocument": {"version": NO_VERSION} | _without_nulls(named)}
    if isinstance(edits, list):
        params = params | {
            "contentChanges": [_without_nulls(edit) if isinstance(edit, dict) else edit for edit in edits]
        }
    return params


def _cell_changes(params: dict[str, Any]) -> dict[str, Any]:
    """Do the same as ``_changes`` for the cells of a notebook."""
    params = copy.deepcopy(params)
    named = params.get("notebookDocument")
    if isinstance(named, dict):
        params["notebookDocument"] = {"version": 0} | _without_nulls(named)
    cells = params.get("change", {}).get("cells") if isinstance(params.get("change"), dict) else None
    contents = cells.get("textContent") if isinstance(cells, dict) else None
    for edited in contents if isinstance(contents, list) else ():
        if isinstance(edited, dict):
            changed = _changes(
                {"textDocument": edited.get("document"), "contentChanges": edited.get("changes")}
            )
            edited |= {"document": changed["textDocument"], "changes": changed["contentChanges"]}
    return params


def _without_nulls(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _hello(params: dict[str, Any]) -> dict[str, Any]:
    """Fill in no capabilities."""
    return params if params.get("capabilities") is not None else params | {"capabilities": {}}


FILLED_IN: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    lsp.INITIALIZE: _hello,
    lsp.TEXT_DOCUMENT_INLINE_COMPLETION: _inline_context,
    lsp.TEXT_DOCUMENT_DID_OPEN: _document,
    lsp.TEXT_DOCUMENT_DID_CHANGE: _changes,
    lsp.NOTEBOOK_DOCUMENT_DID_CHANGE: _cell_changes,
}
# Methods whose unknown fields may be left out.
OPTIONAL = frozenset(
    {
        lsp.INITIALIZE,
        lsp.INITIALIZED,
        lsp.SET_TRACE,
        lsp.TEXT_DOCUMENT_COMPLETION,
        lsp.TEXT_DOCUMENT_INLINE_COMPLETION,
        lsp.WORKSPACE_DID_CHANGE_CONFIGURATION,
    }
)


def structured(converter: cattrs.Converter, message: dict[str, Any], kind: Any) -> Any:
    """Convert a message to its lsprotocol type, without unknown fields. Raises what cattrs raises."""
    left = MAX_LEFT_OUT if message["method"] in OPTIONAL else 0
    while True:
        try:
            return converter.structure(message, kind)
        except cattrs.BaseValidationError as error:
            paths = _unknown(error)
            left -= len(paths)
            if left < 0 or not paths or not all(path[:1] == ("params",) and len(path) > 1 for path in paths):
                raise
            shorter = _left_out(message, paths)
            if shorter == message:
                raise
            message = shorter


def _unknown(error: cattrs.BaseValidationError) -> list[Path]:
    """Return the paths of values that do not fit the type, the last element of a list first."""
    found: set[Path] = set()
    for problem in cattrs.transform_error(error):
        what, _, where = problem.partition(" @ $")
        path: Path = tuple(int(index) if index else name for name, index in _FIELD.findall(where))
        found.add(path[:-1] if what.startswith("required field missing") else path)
    return sorted(found, key=lambda path: [(isinstance(step, int), step) for step in path], reverse=True)


def _left_out(message: dict[str, Any], paths: list[Path]) -> dict[str, Any]:
    """Return the message without the values at these paths."""
    message = copy.deepcopy(message)
    for path in paths:
        inside: Any = message
        found: list[tuple[Any, Any]] = []
        for step in path:
            if (key := _key(inside, step)) is None:
                break  # a text or number where an object should be: all of it is left out
            found.append((inside, key))
            inside = inside[key]
        if len(found) > 1:
            holder, key = found[-1]
            del holder[key]
    return message


def _key(inside: Any, step: str | int) -> Any:
    """Return the wire's key of a field: ``valueSet`` for ``value_set``. ``None`` if it is not there."""
    if isinstance(step, int):
        return step if isinstance(inside, list) and step < len(inside) else None
    names = inside if isinstance(inside, dict) else ()
    return next((name for name in names if re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower() == step), None)
