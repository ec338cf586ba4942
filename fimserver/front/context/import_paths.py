"""Paths of imports: for each language, the workspace files where a module may be.

Every rule returns paths in order of preference. They may not exist or may be outside the workspace: the
caller must check before opening them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Rule = Callable[
    [str, Sequence[str], Path, Path], Sequence[Path]
]  # module, names, importing file, workspace root
_MAX_PARENTS = 12
_MAX_MODULE = 300
_MAX_GO_FILES = 8
_SCRIPTS = (".ts", ".tsx", ".d.ts", ".js", ".jsx", ".mts", ".mjs", ".cts", ".cjs")


def python_files(module: str, _names: Sequence[str], file: Path, root: Path) -> Sequence[Path]:
    """Python modules and packages: relative, or absolute from the root, ``src`` and folders of scripts."""
    name = module.lstrip(".")
    dots = len(module) - len(name)
    parts = name.split(".") if name else []
    if dots:
        above = [file.parent, *file.parent.parents]
        starts = above[dots - 1 : dots]
    else:
        # A folder with __init__.py is a package: its modules are not imported by their bare names.
        loose = [folder for folder in _parents(file, root) if not (folder / "__init__.py").exists()]
        starts = [start for folder in [root, *loose] for start in (folder, folder / "src")]
    found = []
    for start in dict.fromkeys(starts):
        target = start.joinpath(*parts)
        modules = [target.with_name(target.name + end) for end in (".py", ".pyi")] if parts else []
        found += [*modules, target / "__init__.py", target / "__init__.pyi"]
    return found


def script_files(module: str, _names: Sequence[str], file: Path, root: Path) -> Sequence[Path]:
    """JavaScript and TypeScript: relative, ``@/``, ``~/`` and from the root, with or without extension."""
    if module.startswith("."):
        starts = [file.parent / module]
    elif module.startswith(("@/", "~/")):
        starts = [root / "src" / module[2:], root / module[2:]]
    else:
        starts = [root / module, root / "src" / module]
    found = []
    for start in starts:
        stem = start.with_suffix("") if start.suffix in {".js", ".mjs", ".cjs", ".jsx"} else start
        endings = [stem.with_name(stem.name + end) for end in _SCRIPTS] if stem.name not in {"", ".."} else []
        # With ES modules the import says .js where the file is .ts.
        found += [start, *endings, *(start / f"index{end}" for end in _SCRIPTS)]
    return found


def include_files(module: str, _names: Sequence[str], file: Path, root: Path) -> Sequence[Path]:
    """C and C++ headers: beside the file, and in the usual subfolders of every folder above it."""
    above = [
        folder / place for folder in [*_parents(file, root), root] for place in ("include", "inc", "src", ".")
    ]
    return [folder / module for folder in dict.fromkeys([file.parent, *above])]


def go_files(module: str, _names: Sequence[str], _file: Path, root: Path) -> Sequence[Path]:
    """Files of a Go package: the longest end of its path that is a folder.

    Paths without a host belong to Go's standard library.
    """
    parts = module.split("/")
    if "." not in parts[0] or ".." in parts:
        return []
    for start in range(1, len(parts)):
        folder = root.joinpath(*parts[start:])
        if folder.is_dir():
            return sorted(path for path in folder.glob("*.go") if not path.stem.endswith("_test"))[
                :_MAX_GO_FILES
            ]
    return []


def rust_files(module: str, _names: Sequence[str], file: Path, root: Path) -> Sequence[Path]:
    """Rust modules of the same crate: ``crate::``, ``self::``, ``super::`` and children."""
    head, *rest = module.split("::")
    own = file.parent if file.stem in {"mod", "lib", "main"} else file.with_suffix("")
    if head == "crate":
        start = next(
            (folder / "src" for folder in _parents(file, root) if (folder / "Cargo.toml").exists()),
            root / "src",
        )
    elif head == "super":
        start = own.parent
        while rest and rest[0] == "super":
            start = start.parent
            rest = rest[1:]
    else:
        start = own
        rest = rest if head == "self" else [head, *rest]
    target = start.joinpath(*rest)
    if not rest:
        return [
            target / "lib.rs",
            target / "main.rs",
            target / "mod.rs",
            target.with_name(target.name + ".rs"),
        ]
    return [target.with_name(target.name + ".rs"), target / "mod.rs"]


def java_files(module: str, names: Sequence[str], file: Path, root: Path) -> Sequence[Path]:
    """Java classes: below any folder above the file, and below the usual source folders."""
    usual = [root / place for place in ("src/main/java", "src", "src/test/java", "app/src/main/java")]
    starts = dict.fromkeys([*_parents(file, root), root, *usual])
    return [
        start.joinpath(*module.split("."), f"{name}.java")
        for start in starts
        for name in names
        if name != "*"
    ]


def _bounded(rule: Rule) -> Rule:
    """Wrap a rule: no paths for a module that cannot be a name, as it is too long or unprintable."""

    def bounded(module: str, names: Sequence[str], file: Path, root: Path) -> Sequence[Path]:
        is_name = (
            0 < len(module) <= _MAX_MODULE and module.isprintable() and not module.startswith(("/", "\\"))
        )
        return rule(module, names, file, root) if is_name else []

    return bounded


def _parents(file: Path, root: Path) -> Sequence[Path]:
    """Folders from the file up to the workspace root."""
    return [folder for folder in file.parents[:_MAX_PARENTS] if folder.is_relative_to(root)]


CANDIDATES: Mapping[str, Rule] = {
    "python": _bounded(python_files),
    "javascript": _bounded(script_files),
    "typescript": _bounded(script_files),
    "tsx": _bounded(script_files),
    "c": _bounded(include_files),
    "cpp": _bounded(include_files),
    "go": _bounded(go_files),
    "rust": _bounded(rust_files),
    "java": _bounded(java_files),
}
