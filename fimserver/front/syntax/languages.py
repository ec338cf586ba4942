"""Tables of languages: names, tree-sitter grammars and their node types, and queries for imports."""

import re
from collections.abc import Mapping

from fimserver.languages import CLOSING_WORDS, COLON_BLOCKS, COMMENT_MARKS, CONTINUING_WORDS, language_of_path

__all__ = ["CLOSING_WORDS", "COLON_BLOCKS", "COMMENT_MARKS", "CONTINUING_WORDS", "language_of"]

# LSP language ids that differ from our names.
_IDS: Mapping[str, str] = {
    "javascriptreact": "javascript",
    "typescriptreact": "tsx",
    "shellscript": "bash",
    "sh": "bash",
    "zsh": "bash",
    "csharp": "c_sharp",
    "cs": "c_sharp",
    "jsonc": "json",
    "golang": "go",
}
# Ids for "unknown": only for these the file name decides.
_UNSURE = frozenset({"", "plaintext", "text"})

# Our name: (module, function that returns the grammar).
GRAMMARS: Mapping[str, tuple[str, str]] = {
    "python": ("tree_sitter_python", "language"),
    "javascript": ("tree_sitter_javascript", "language"),
    "typescript": ("tree_sitter_typescript", "language_typescript"),
    "tsx": ("tree_sitter_typescript", "language_tsx"),
    "go": ("tree_sitter_go", "language"),
    "rust": ("tree_sitter_rust", "language"),
    "java": ("tree_sitter_java", "language"),
    "c": ("tree_sitter_c", "language"),
    "cpp": ("tree_sitter_cpp", "language"),
    "c_sharp": ("tree_sitter_c_sharp", "language"),
    "ruby": ("tree_sitter_ruby", "language"),
    "lua": ("tree_sitter_lua", "language"),
    "bash": ("tree_sitter_bash", "language"),
    "json": ("tree_sitter_json", "language"),
    "yaml": ("tree_sitter_yaml", "language"),
    "html": ("tree_sitter_html", "language"),
    "css": ("tree_sitter_css", "language"),
}

# What to insert where an expression is missing: a name, but JSON has none.
FILLERS: Mapping[str, str] = {"json": "0"}

BLOCK_WORDS: Mapping[str, tuple[str, ...]] = {
    "ruby": (
        r"^(?:def|class|module|if|unless|while|until|case|begin|else|elsif|rescue|ensure|when)\b",
        r"\bdo(?:\s*\|[^|]*\|)?$",
    ),
    "lua": (r"\b(?:then|do|else|repeat)$", r"\bfunction\b[^()]*\([^()]*\)$"),
    "bash": (r"\b(?:then|do|else)$",),
}

# Indentation unit of a language, for a file without indentation. Without an entry the model decides.
INDENTATION: Mapping[str, str] = {"go": "\t"}
_MAKEFILES = re.compile(r"(?:gnu)?makefile(?:\.\w+)?|.*\.mk", re.IGNORECASE)

COMMENT_KINDS = frozenset(
    {"comment", "line_comment", "block_comment", "html_comment", "js_comment", "doc_comment"}
)
STRING_KINDS = frozenset(
    {
        "string", "template_string", "regex", "interpreted_string_literal", "raw_string_literal",
        "rune_literal",
        "string_literal", "char_literal", "character_literal", "character", "verbatim_string_literal",
        "interpolated_string_expression", "string_array", "heredoc_body", "raw_string", "ansi_c_string",
        "double_quote_scalar", "single_quote_scalar", "block_scalar", "quoted_attribute_value",
        "string_value",
    },
)  # fmt: skip
# Code inside a string.
INTERPOLATION_KINDS = frozenset(
    {
        "interpolation", "template_substitution", "string_interpolation", "expansion", "simple_expansion",
        "command_substitution", "arithmetic_expansion",
    },
)  # fmt: skip

# Nodes that wrap a definition and belong to it, and nodes that merely contain definitions.
WRAPPERS = frozenset(
    {"export_statement", "decorated_definition", "template_declaration", "type_declaration",
     "lexical_declaration",
     "variable_declaration", "ambient_declaration", "declaration", "type_definition"},
)  # fmt: skip
HOLDERS = frozenset(
    {"preproc_ifdef", "preproc_if", "preproc_else", "linkage_specification", "namespace_definition",
     "declaration_list",
     "if_statement", "try_statement", "block"},
)  # fmt: skip

_FROM = "source: (string (string_fragment) @module)"
_REQUIRE = (
    "(call_expression function: (identifier) @_f arguments: (arguments (string (string_fragment) @module))"
    ' (#eq? @_f "require"))'
)
_JAVASCRIPT = f"""
(import_statement {_FROM})
(import_statement (import_clause (identifier) @name) {_FROM})
(import_statement (import_clause (named_imports (import_specifier name: (_) @name))) {_FROM})
(export_statement {_FROM})
(export_statement (export_clause (export_specifier name: (_) @name)) {_FROM})
{_REQUIRE}
(variable_declarator name: (identifier) @name value: {_REQUIRE})
(variable_declarator name: (object_pattern (shorthand_property_identifier_pattern) @name) value: {_REQUIRE})
(variable_declarator name: (object_pattern (pair_pattern key: (_) @name)) value: {_REQUIRE})
"""
_C = """
(preproc_include path: (system_lib_string) @module)
(preproc_include path: (string_literal (string_content) @module))
"""
# One match is a module, or a module and one name imported from it.
IMPORT_QUERIES: Mapping[str, str] = {
    "python": (
        """
        (import_statement name: (dotted_name) @module)
        (import_statement name: (aliased_import name: (dotted_name) @module))
        (import_from_statement module_name: (_) @module)
        (import_from_statement module_name: (_) @module name: (dotted_name) @name)
        (import_from_statement module_name: (_) @module name: (aliased_import name: (dotted_name) @name))
        (import_from_statement module_name: (_) @module (wildcard_import) @name)
    """
    ),
    "javascript": _JAVASCRIPT,
    "typescript": _JAVASCRIPT,
    "tsx": _JAVASCRIPT,
    "go": "(import_spec path: (_ (interpreted_string_literal_content) @module))",
    "rust": (
        """
        (use_declaration argument: (identifier) @module)
        (use_declaration argument: (scoped_identifier path: (_) @module name: (_) @name))
        (use_declaration argument:
            (use_as_clause path: (scoped_identifier path: (_) @module name: (_) @name)))
        (use_declaration argument: (use_wildcard (_) @module))
        (use_declaration argument: (scoped_use_list path: (_) @module))
        (use_declaration argument: (scoped_use_list path: (_) @module list: (use_list (identifier) @name)))
        (use_declaration argument: (scoped_use_list path: (_) @module
            list: (use_list (use_as_clause path: (identifier) @name))))
    """
    ),
    "java": (
        """
        (import_declaration (scoped_identifier scope: (_) @module name: (_) @name) .)
        (import_declaration (scoped_identifier) @module (asterisk) @name)
    """
    ),
    "c": _C,
    "cpp": _C,
}


def is_makefile(language_id: str, path: str = "") -> bool:
    """Whether a file is a makefile, whose recipes need tabs."""
    return language_id.lower() in {"make", "makefile"} or bool(_MAKEFILES.fullmatch(path.rsplit("/", 1)[-1]))


def language_of(language_id: str, path: str = "") -> str | None:
    """Our name for an LSP language id, or for the file's extension without one; ``None``: plain text."""
    name = _IDS.get(language_id.lower(), language_id.lower())
    if name in GRAMMARS:
        return name
    return language_of_path(path) if language_id.lower() in _UNSURE else None
