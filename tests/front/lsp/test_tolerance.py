"""Clients of other protocol versions: missing fields are filled in, unknown ones left out."""

import copy

import cattrs
import pytest
from lsprotocol import types as lsp
from pygls.protocol import default_converter

from fimserver.front.lsp.tolerance import NO_VERSION, filled_in, structured
from tests.editor import recorded

CONVERTER = default_converter()


def hello(path=(), value=None):
    """The parsed parameters of ``initialize`` with ``value`` at ``path``."""
    params = copy.deepcopy(recorded("vscode"))
    inside = params
    for name in path[:-1]:
        inside = inside.setdefault(name, {})
    if path:
        inside[path[-1]] = value
    message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
    return structured(CONVERTER, message, lsp.InitializeRequest).params


KINDS = ("capabilities", "workspace", "symbol", "symbolKind", "valueSet")
EDIT = ("capabilities", "workspace", "workspaceEdit")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("trace",), "compact"),
        (("clientInfo",), {}),
        (("clientInfo",), "vi"),
        (("clientInfo",), ["vi", 9]),
        (("workspaceFolders",), "file:///a"),
        (("workspaceFolders",), {"uri": "file:///a"}),
        (("processId",), "seven"),
        (("workspaceFolders",), [{"uri": "file:///a"}]),
        (KINDS, [1, 200, 2, 201]),
        ((*EDIT, "failureHandling"), "explode"),
        ((*EDIT, "resourceOperations"), ["blow", "create", "up"]),
        (("capabilities", "textDocument", "completion", "insertTextMode"), 7),
        (("capabilities", "general", "positionEncodings"), 3),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_an_unknown_value_is_left_out_and_the_rest_is_kept(path, value):
    known, odd = hello().capabilities, hello(path, value).capabilities
    assert odd.text_document.inline_completion == known.text_document.inline_completion
    assert odd.workspace.configuration == known.workspace.configuration


def test_the_known_values_of_a_list_stay():
    kinds = hello(KINDS, [1, 200, 2, 201]).capabilities.workspace.symbol.symbol_kind.value_set
    assert [kind.value for kind in kinds] == [1, 2]


def test_what_is_needed_is_not_left_out():
    with pytest.raises(cattrs.BaseValidationError):
        hello(("capabilities",), 7)


@pytest.mark.parametrize("params", [{}, {"capabilities": None}])
def test_a_hello_without_capabilities_has_none(params):
    assert filled_in("initialize", params) == {"capabilities": {}}


def test_an_edit_that_cannot_be_read_is_not_left_out():
    bad = {
        "range": {"start": {"line": "one", "character": 0}, "end": {"line": 0, "character": 0}},
        "text": "x",
    }
    params = {"textDocument": {"uri": "a", "version": 1}, "contentChanges": [bad]}
    message = {"jsonrpc": "2.0", "method": "textDocument/didChange", "params": params}
    with pytest.raises(cattrs.BaseValidationError):
        structured(CONVERTER, message, lsp.DidChangeTextDocumentNotification)


@pytest.mark.parametrize(
    ("context", "kind"),
    [
        ({"triggerKind": 1}, 1),
        ({"triggerKind": 2}, 2),
        ({"triggerKind": 0}, 1),  # Invoked in the drafts of LSP 3.18
        ({"triggerKind": 7}, 2),
        ({"triggerKind": None}, 2),
        ({"triggerKind": "Invoked"}, 2),
        ({}, 2),
        (None, 2),
        ([], 2),
    ],
)
def test_trigger_kinds(context, kind):
    params = filled_in("textDocument/inlineCompletion", {"context": context})
    assert params["context"]["triggerKind"] == kind


@pytest.mark.parametrize("named", [{"uri": "a", "version": None}, {"uri": "a"}])
@pytest.mark.parametrize(
    "edit", [{"text": "x", "range": None, "rangeLength": None}, {"text": "x", "range": None}, {"text": "x"}]
)
def test_an_edit_without_version_or_range_is_the_whole_text(named, edit):
    params = filled_in("textDocument/didChange", {"textDocument": named, "contentChanges": [edit]})
    assert params == {"textDocument": {"uri": "a", "version": NO_VERSION}, "contentChanges": [{"text": "x"}]}
