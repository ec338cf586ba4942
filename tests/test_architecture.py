"""The import rules of the design, and the words that may not be in the code."""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fimserver"
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {"torch", "transformers", "accelerate", "safetensors", "torchao"}
LSP = {"pygls", "lsprotocol"}
BASE = {
    "types",
    "errors",
    "reasons",
    "settings",
    "cards",
    "hashing",
    "wire",
    "json_body",
    "paths",
    "lengths",
    "languages",
    "scan",
    "around",
    "middle_state",
    "endings",
    "events",
    "confidence_sequence",
    "defaults",
    "keystrokes",
    "machine",
}


def part(path: Path) -> str:
    """The room a module is in: front, host, engine, ab, or its own name at the top level."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def own(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("fimserver.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
class TestEveryModule:
    def test_heavy_libraries_stay_in_the_engine(self, path):
        if part(path) != "engine":
            assert not tops(path) & HEAVY

    def test_lsp_libraries_stay_in_the_front(self, path):
        if PACKAGE / "front" / "lsp" not in path.parents:
            assert not tops(path) & LSP

    def test_tree_sitter_stays_in_one_module(self, path):
        if path != PACKAGE / "front" / "syntax" / "parser.py":
            assert not any(name.startswith("tree_sitter") for name in tops(path))

    def test_rooms_know_only_what_lies_below(self, path):
        allowed = {
            "types": {"reasons"},
            "reasons": set(),
            "errors": set(),
            "settings": {"types", "errors"},
            "cards": {"types", "errors"},
            "json_body": {"errors"},
            "wire": {"types", "errors", "reasons", "json_body"},
            "paths": {"settings", "errors"},
            "machine": set(),
            "keystrokes": {"paths"},
            "defaults": {"cards", "keystrokes", "machine", "settings", "types"},
            "engine": BASE | {"engine"},
            "front": BASE - {"cards", "hashing"} | {"front"},
            "host": BASE | {"engine", "host"},
        }
        if part(path) in allowed:
            assert own(path) <= allowed[part(path)] | {"__version__"}

    def test_relative_imports_and_dangerous_words_are_absent(self, path):
        text = path.read_text("utf-8")
        tree = ast.parse(text)
        assert not any(isinstance(n, ast.ImportFrom) and n.level for n in ast.walk(tree))
        assert "trust_remote_code=True" not in text
        assert not {"pickle", "marshal", "shelve"} & tops(path)

    def test_it_says_what_it_knows(self, path):
        docstring = ast.get_docstring(ast.parse(path.read_text("utf-8")))
        assert docstring

    def test_it_is_small(self, path):
        assert path.read_text("utf-8").count("\n") <= 300


def test_the_package_never_imports_the_models_folder():
    assert not any("models" in tops(path) for path in MODULES)


def test_the_command_line_starts_without_torch():
    assert not tops(PACKAGE / "cli.py") & HEAVY
    top_level = [n for n in ast.parse((PACKAGE / "cli.py").read_text("utf-8")).body if isinstance(n, ast.ImportFrom)]
    assert not any((n.module or "").startswith("fimserver.engine") for n in top_level)


def test_a_public_class_name_means_one_thing():
    names = Counter(
        node.name
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in names.items() if count > 1] == []
