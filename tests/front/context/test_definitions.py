"""Outlines of imported names, read only from files of the workspace."""

import os
import threading

import pytest

from fimserver.front.context.definitions import LOOK_AGAIN_S, MAX_BYTES, Definitions, Worker
from fimserver.front.context.privacy import Privacy
from fimserver.front.documents.mirror import Document, Position

PY = 'class Shape:\n    """A shape."""\n\n    def area(self):\n        return 42\n\n\ndef make(n):\n    return Shape()\n'
TS = "export interface Shape { area: number }\nexport function make(n: number): Shape {\n  return { area: 42 }\n}\n"
C = "struct shape { int area; };\nint make(int n);\n"


class Clock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def sync(root, clock=None, globs=()):
    return Definitions([root], Privacy([root], globs), run=lambda job: job(), clock=clock or Clock())


def lookup(definitions, path, text, language):
    document = Document(path.as_uri(), language, 1, text)
    return definitions.lookup(document.snapshot(Position(0, 0)), path)


@pytest.mark.parametrize(
    ("language", "file", "text", "target", "content"),
    [
        ("python", "main.py", "from shapes import make\n", "shapes.py", PY),
        ("python", "main.py", "from pkg.shapes import make\n", "pkg/shapes.py", PY),
        ("python", "main.py", "from pkg.shapes import make\n", "src/pkg/shapes.py", PY),
        ("python", "main.py", "from pkg import make\n", "pkg/__init__.py", PY),
        ("python", "pkg/a/main.py", "from ..shapes import make\n", "pkg/shapes.py", PY),
        ("python", "pkg/main.py", "from . import shapes\nshapes.make(1)\n", "pkg/shapes.py", PY),
        ("python", "main.py", "import pkg.shapes\npkg.shapes.make(1)\n", "pkg/shapes.py", PY),
        ("python", "main.py", "from shapes import *\nmake(1)\n", "shapes.py", PY),
        ("python", "tools/main.py", "from shapes import make\n", "tools/shapes.py", PY),
        ("typescript", "src/main.ts", 'import { make } from "./shapes"\n', "src/shapes.ts", TS),
        ("typescript", "src/main.ts", 'import { make } from "./shapes.js"\n', "src/shapes.ts", TS),
        ("typescript", "src/a/main.ts", 'import { make } from "../shapes"\n', "src/shapes/index.ts", TS),
        ("typescriptreact", "src/a/b.tsx", 'import { make } from "@/shapes"\n', "src/shapes.ts", TS),
        ("javascript", "main.js", 'const { make } = require("./shapes")\n', "shapes.js", "function make(n) {\n  return 42\n}\n"),
        ("c", "src/main.c", '#include "shapes.h"\nint x = make(1);\n', "src/shapes.h", C),
        ("cpp", "src/main.cpp", '#include "lib/shapes.h"\nint x = make(1);\n', "include/lib/shapes.h", C),
        ("go", "main.go", 'package main\nimport "example.com/mod/shapes"\nvar x = shapes.make(1)\n', "shapes/shapes.go",
         "package shapes\nfunc make(n int) int {\n\treturn 42\n}\n"),
        ("rust", "src/main.rs", "use crate::shapes::make;\n", "src/shapes.rs", "pub fn make(n: i32) -> i32 {\n    42\n}\n"),
        ("rust", "src/a.rs", "use super::shapes::{make};\n", "src/shapes/mod.rs", "pub fn make(n: i32) -> i32 {\n    42\n}\n"),
        ("java", "src/main/java/org/x/Main.java", "import org.x.shapes.Maker;\n", "src/main/java/org/x/shapes/Maker.java",
         "package org.x.shapes;\npublic class Maker {\n  int make(int n) { return 42; }\n}\n"),
    ],
)  # fmt: skip
def test_an_import_gives_the_outline_of_what_it_names(tmp_path, language, file, text, target, content):
    write(tmp_path, {target: content})
    (snippet,) = lookup(sync(tmp_path), tmp_path / file, text, language)
    assert snippet.path == target
    assert "make" in snippet.text
    assert "42" not in snippet.text  # an outline has no bodies


def test_outlines_of_one_file_are_one_snippet_in_the_order_of_the_imports(tmp_path):
    write(tmp_path, {"shapes.py": PY, "names.py": "def label(x):\n    return x\n"})
    found = lookup(
        sync(tmp_path),
        tmp_path / "main.py",
        "from names import label\nfrom shapes import make, Shape\n",
        "python",
    )
    assert [snippet.path for snippet in found] == ["names.py", "shapes.py"]
    assert found[1].text.index("def make") < found[1].text.index("class Shape")


def test_a_name_that_a_package_passes_on_is_followed(tmp_path):
    write(tmp_path, {"pkg/__init__.py": "from .shapes import make\n", "pkg/shapes.py": PY})
    (snippet,) = lookup(sync(tmp_path), tmp_path / "main.py", "from pkg import make\n", "python")
    assert snippet.path == "pkg/shapes.py"


def test_modules_that_import_each_other_end(tmp_path):
    write(tmp_path, {"a.py": "from b import gone\n", "b.py": "from a import gone\n"})
    assert lookup(sync(tmp_path), tmp_path / "main.py", "from a import gone\n", "python") == ()


@pytest.mark.parametrize(
    "text",
    [
        'import { make } from "../../outside/shapes"\n',
        'import { make } from "../outside/shapes"\n',
        'import { make } from "./linked/shapes"\n',
        'import { make } from "./link"\n',
    ],
)
def test_nothing_outside_of_the_workspace_is_read(tmp_path, text):
    write(tmp_path, {"outside/shapes.ts": TS, "root/.keep": ""})
    root = tmp_path / "root"
    (root / "linked").symlink_to(tmp_path / "outside")
    (root / "link.ts").symlink_to(tmp_path / "outside" / "shapes.ts")
    assert lookup(sync(root), root / "main.ts", text, "typescript") == ()


def test_a_document_outside_of_the_workspace_gets_nothing(tmp_path):
    write(tmp_path, {"outside/shapes.py": PY, "root/.keep": ""})
    assert (
        lookup(
            sync(tmp_path / "root"), tmp_path / "outside" / "main.py", "from shapes import make\n", "python"
        )
        == ()
    )


def test_excluded_generated_large_and_odd_files_are_not_read(tmp_path):
    text = "".join(
        f"from {name} import make\n"
        for name in ("ignored", "globbed", "big", "gen", "folder", "pipe", "m_pb2")
    )
    write(tmp_path, {
        ".gitignore": "ignored.py\n", "ignored.py": PY, "globbed.py": PY, "big.py": PY + "#" * MAX_BYTES, "m_pb2.py": PY,
        "gen.py": "# Generated by x. DO NOT EDIT\n" + PY, "folder.py/x": "",
    })  # fmt: skip
    os.mkfifo(tmp_path / "pipe.py")
    assert lookup(sync(tmp_path, globs=["globbed.py"]), tmp_path / "main.py", text, "python") == ()


def test_a_changed_file_is_read_again_after_a_while(tmp_path):
    clock = Clock()
    definitions = sync(tmp_path, clock)
    text = "from shapes import make\n"
    write(tmp_path, {"shapes.py": PY})
    first = lookup(definitions, tmp_path / "main.py", text, "python")
    write(tmp_path, {"shapes.py": PY.replace("make(n)", "make(n, colour)")})
    os.utime(tmp_path / "shapes.py", ns=(1, 1))
    assert lookup(definitions, tmp_path / "main.py", text, "python") == first
    clock.now_s += LOOK_AGAIN_S
    assert "colour" in lookup(definitions, tmp_path / "main.py", text, "python")[0].text


def test_lookup_returns_at_once_with_what_is_ready(tmp_path):
    write(tmp_path, {"shapes.py": PY})
    jobs = []
    definitions = Definitions([tmp_path], Privacy([tmp_path]), run=jobs.append, clock=Clock())
    path = tmp_path / "main.py"
    assert lookup(definitions, path, "from shapes import make\n", "python") == ()
    assert lookup(definitions, path, "from shapes import make, Shape\n", "python") == ()
    assert len(jobs) == 1  # the newest question takes the place of the one that waits
    jobs.pop()()
    assert "class Shape" in lookup(definitions, path, "from shapes import make, Shape\n", "python")[0].text
    assert not jobs
    lookup(definitions, path, "import os\n", "python")
    definitions.forget(path.as_uri())
    jobs.pop()()
    assert not definitions._known


def test_the_worker_goes_on_after_a_failure():
    done, worker = threading.Event(), Worker()
    worker(lambda: 1 / 0)
    worker(done.set)
    assert done.wait(5)


@pytest.mark.parametrize(
    "module",
    ["", "a" * 5000, "../" * 2000, "a\0b", ".", "..", "....", "/etc/passwd", "~/x", "@/", "::", "C:\\x"],
)
@pytest.mark.parametrize("language", ["python", "typescript", "c", "go", "rust", "java"])
def test_odd_modules_do_no_harm(tmp_path, language, module, monkeypatch):
    from fimserver.front.syntax import parser

    monkeypatch.setattr(
        parser, "imports", lambda *_: (parser.Import(module, ("make",)), parser.Import(module, ()))
    )
    assert lookup(sync(tmp_path), tmp_path / "main.x", "make", language) == ()
