"""Outlines of definitions: signature, first line of the docstring, members."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tree_sitter import Node

from fimserver.front.syntax import languages

OUTLINE_LINES = 30
_LINE_CHARS = 160
_DEPTH = 8  # maximum nesting of a definition


def outline(language: str, root: Node, name: str) -> str | None:
    """Outline of a top-level definition under ``root``, or ``None`` if the name is not defined."""
    found = [(outer, inner) for outer, inner in _definitions(root) if _name_of(inner) == name]
    if not found:
        return None
    # There may be a declaration before the definition: prefer the one with a body.
    outer, inner = min(found, key=lambda pair: body_of(pair[1]) is None)
    lines = [*_outline(language, outer, inner), *_attached(root, name)]
    return "\n".join(line[:_LINE_CHARS] for line in lines[:OUTLINE_LINES])


def text_of(node: Node) -> str:
    return (node.text or b"").decode("utf-8", "replace")


def _definitions(node: Node, outer: Node | None = None, depth: int = 0) -> Iterator[tuple[Node, Node]]:
    """Yield pairs of a definition, with its decorators and ``export``, and the node with its name."""
    for child in node.named_children if depth < _DEPTH else ():
        if child.type in languages.HOLDERS:
            yield from _definitions(child, None, depth + 1)
        elif child.type in languages.WRAPPERS:
            yield child, child
            yield from _definitions(child, outer or child, depth + 1)
        else:
            yield outer or child, child


def _name_of(node: Node) -> str:
    name = node.child_by_field_name("name")
    while name is None and (inner := node.child_by_field_name("declarator")) is not None:
        node = inner
        name = inner if inner.child_count == 0 else inner.child_by_field_name("name")
    return text_of(name) if name is not None else ""


def body_of(node: Node, depth: int = 0) -> Node | None:
    """Body of a function or class, also of one bound to a name (``const f = () => {…}``)."""
    if (body := node.child_by_field_name("body")) is not None or depth == _DEPTH:
        return body
    parts = (node.child_by_field_name(field) for field in ("value", "type"))
    found = (body_of(part, depth + 1) for part in parts if part is not None)
    fields = (child for child in node.named_children if child.type == "field_declaration_list")
    return next((part for part in found if part is not None), None) or next(fields, None)


def _outline(language: str, outer: Node, inner: Node) -> list[str]:
    body = body_of(inner)
    if body is None:
        return text_of(outer).splitlines()
    doc = _docstring(body) if language == "python" else _comment_above(outer)
    above = [f"// {doc}"] if doc and language != "python" else []
    first = [f'"""{doc}"""'] if doc and language == "python" else []
    members = (
        [line for child in body.named_children for line in _member(child)] if _holds_members(body) else []
    )
    return [*above, *_before(outer, body), *("    " + line for line in first + members)]


def _before(outer: Node, body: Node) -> list[str]:
    """Non-blank lines from the start of ``outer`` to its body."""
    raw = (outer.text or b"")[: body.start_byte - outer.start_byte].decode("utf-8", "replace")
    return [line.rstrip() for line in raw.splitlines() if line.strip()]


def _holds_members(body: Node) -> bool:
    return body.type not in {"block", "statement_block", "compound_statement"} or (
        body.parent is not None and body.parent.type == "class_definition"
    )


def _member(node: Node) -> list[str]:
    """One line for a field or the signature of a method."""
    if node.type in languages.COMMENT_KINDS or (
        node.type == "expression_statement" and node.named_children[0].type == "string"
    ):
        return []
    inner = node.child_by_field_name("definition") or node
    body = body_of(inner)
    lines = _before(node, body) if body is not None else text_of(node).splitlines()[:1]
    return [" ".join(line.strip() for line in lines)]


def _attached(root: Node, name: str) -> list[str]:
    """Signatures of methods defined outside the type: Rust's ``impl`` and Go's receivers."""
    lines: list[str] = []
    for node in root.named_children:
        receiver = node.child_by_field_name("receiver")
        kind = node.child_by_field_name("type")
        body = node.child_by_field_name("body")
        if (
            node.type == "impl_item"
            and kind is not None
            and text_of(kind).partition("<")[0] == name
            and body is not None
        ):
            lines += [
                *_before(node, body),
                *("    " + line for child in body.named_children for line in _member(child)),
            ]
        elif receiver is not None and re.search(rf"\b{re.escape(name)}\b", text_of(receiver)):
            lines += _member(node)
    return lines


def _docstring(body: Node) -> str:
    """First line of a Python docstring."""
    first = body.named_children[0] if body.named_children else None
    if first is None or first.type != "expression_statement" or first.named_children[0].type != "string":
        return ""
    return text_of(first).lstrip("rRuU").strip("\"' \n").split("\n", 1)[0].strip()


def _comment_above(node: Node) -> str:
    """First line of the comment directly above a node."""
    doc = ""
    below = node
    while (above := below.prev_sibling) is not None and above.type in languages.COMMENT_KINDS:
        if below.start_point.row - above.end_point.row > 1:
            break
        doc = text_of(above)
        below = above
    return next((line for raw in doc.splitlines() if (line := raw.strip("/*#!- \t"))), "")
