"""Import rules, sizes, and words that must not be in the code."""

import ast
from collections import Counter
from functools import cache
from graphlib import CycleError, TopologicalSorter
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
    "base_url",
    "canvas_card",
    "cards",
    "hashing",
    "wire",
    "sse",
    "json_body",
    "kept_json",
    "paths",
    "lengths",
    "languages",
    "stopping",
    "events",
    "confidence_sequence",
    "defaults",
    "keystrokes",
    "machine",
    "threads",
}


def part(path: Path) -> str:
    """The room a module is in: front, host, engine, ab, or its own name at the top level."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


@cache
def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(parsed(path)):
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

    def test_tree_sitter_stays_in_one_folder(self, path):
        if path.parent != PACKAGE / "front" / "syntax":
            assert not any(name.startswith("tree_sitter") for name in tops(path))

    def test_http_goes_out_of_an_engine_in_one_folder(self, path):
        if part(path) == "engine" and path.parent != PACKAGE / "engine" / "remote":
            assert "httpx2" not in tops(path)

    def test_rooms_know_only_what_lies_below(self, path):
        allowed = {
            "types": {"reasons"},
            "reasons": set(),
            "sse": set(),
            "errors": set(),
            "base_url": set(),
            "settings": {"base_url", "types", "errors"},
            "canvas_card": set(),
            "cards": {"base_url", "canvas_card", "types", "errors"},
            "json_body": {"errors"},
            "wire": {"sse", "types", "errors", "reasons", "json_body"},
            "paths": {"settings", "errors"},
            "machine": set(),
            "threads": set(),
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
        tree = parsed(path)
        assert not any(isinstance(n, ast.ImportFrom) and n.level for n in ast.walk(tree))
        assert "trust_remote_code=True" not in text
        assert not {"pickle", "marshal", "shelve"} & tops(path)

    def test_its_docstring_says_what_it_is(self, path):
        docstring = ast.get_docstring(parsed(path))
        assert docstring
        assert not docstring.startswith(("Knows", "Module"))

    def test_it_is_small(self, path):
        assert path.read_text("utf-8").count("\n") <= 300


class TestLines:
    @pytest.mark.parametrize("folder", ["fimserver", "models", "bench"])
    def test_none_is_longer_than_110_columns(self, folder):
        long = [
            f"{path.relative_to(ROOT)}:{number}"
            for path in sorted((ROOT / folder).rglob("*.py"))
            for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1)
            if len(line) > 110
        ]
        assert not long


# A folder of the front, the host or the comparisons, and the folders that it may import beside itself and the base modules.
FLOORS = {
    "front/syntax": set(),
    "front/documents": set(),
    "front/context": {"front/documents", "front/syntax"},
    "front/postprocess": {"front/syntax"},
    "front/feedback": {"front/documents", "front/context"},
    "host/routing": set(),
    "host/stats": {"host", "host/routing"},
    "host/http": {"host", "host/routing", "host/stats"},
    "engine/forward": {"engine"},
    "engine/prompts": {"engine", "engine/forward"},
    "engine/denoising": {"engine", "engine/forward", "engine/prompts"},
    "engine/speculation": {"engine", "engine/forward"},
    "engine/weights": {"engine", "engine/forward", "engine/prompts"},
    "engine/remote": {"engine", "engine/prompts"},
    "ab/items": {"front/context", "front/documents", "front/feedback", "front/syntax"},
    "ab/analysis": {"ab"},
    "ab/replay": {"ab", "ab/analysis", "ab/items", "front/lsp"},
    "ab/report": {"ab", "ab/analysis"},
}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def folder_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parent.as_posix()


def graph() -> dict[str, set[str]]:
    """Modules, and the modules of the package that each imports, for annotations too."""
    known = {module_of(path): path for path in MODULES if path.name != "__init__.py"}
    return {name: imports(path) & set(known) - {name} for name, path in known.items()}


def test_no_modules_import_each_other_in_a_circle():
    try:
        list(TopologicalSorter(graph()).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


@pytest.mark.parametrize("folder", FLOORS)
def test_folders_import_only_what_is_below(folder):
    paths = {module_of(path): folder_of(path) for path in MODULES}
    found = {paths[name] for module, names in graph().items() if paths[module] == folder for name in names}
    base = {".", "stopping", folder} | ({"engine"} if folder.startswith("host") else set())
    assert found - base <= FLOORS[folder]


def test_the_package_never_imports_the_models_folder():
    assert not any("models" in tops(path) for path in MODULES)


def test_the_command_line_starts_without_torch():
    assert not tops(PACKAGE / "cli.py") & HEAVY
    top_level = [
        n for n in ast.parse((PACKAGE / "cli.py").read_text("utf-8")).body if isinstance(n, ast.ImportFrom)
    ]
    assert not any((n.module or "").startswith("fimserver.engine") for n in top_level)


def test_a_public_class_name_means_one_thing():
    names = Counter(
        node.name
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in names.items() if count > 1] == []
