"""Facts about programming languages: extensions, comment marks, words and signs of blocks."""

from __future__ import annotations

from collections.abc import Mapping

EXTENSIONS: Mapping[str, str] = {
    "py": "python", "pyi": "python", "pyw": "python",
    "js": "javascript", "mjs": "javascript", "cjs": "javascript", "jsx": "javascript",
    "ts": "typescript", "mts": "typescript", "cts": "typescript", "tsx": "tsx",
    "go": "go", "rs": "rust", "java": "java",
    "c": "c", "h": "c", "cpp": "cpp", "cc": "cpp", "cxx": "cpp", "hpp": "cpp", "hh": "cpp", "hxx": "cpp",
    "cs": "c_sharp", "rb": "ruby", "rake": "ruby", "lua": "lua", "sh": "bash", "bash": "bash", "zsh": "bash",
    "json": "json", "yaml": "yaml", "yml": "yaml", "html": "html", "htm": "html", "css": "css",
}  # fmt: skip

COMMENT_MARKS: Mapping[str, str] = {
    "python": "#", "ruby": "#", "bash": "#", "yaml": "#", "lua": "--",
    "javascript": "//", "typescript": "//", "tsx": "//", "go": "//", "rust": "//",
    "java": "//", "c": "//", "cpp": "//", "c_sharp": "//",
}  # fmt: skip

# Words that end a block, and words that continue the statement whose block has just ended.
CLOSING_WORDS: Mapping[str, tuple[str, ...]] = {
    "ruby": ("end",),
    "lua": ("end", "until"),
    "bash": ("fi", "done", "esac"),
}
CONTINUING_WORDS = frozenset(
    {
        "else",
        "elif",
        "elsif",
        "elseif",
        "except",
        "finally",
        "catch",
        "rescue",
        "ensure",
        "when",
        "then",
        "do",
        "while",
    },
)
# Languages in which a colon at the end of a line opens a block.
COLON_BLOCKS = frozenset({"python", "yaml"})
# Languages whose statements may end with a semicolon.
SEMICOLONS = frozenset({"javascript", "typescript", "tsx", "rust", "java", "c", "cpp", "c_sharp", "css"})


def language_of_path(path: str) -> str | None:
    """Return our name of the language for a file's extension; ``None`` for others."""
    return EXTENSIONS.get(path.rsplit("/", 1)[-1].rpartition(".")[2].lower())
