"""Sources of the items of a comparison, and whether a text in their place parses."""

import json
import random
import subprocess
from collections import Counter

import pytest

from fimserver.ab.items.cuts import BLOCK_LINES, BODY_LINES, KINDS, MIDDLE_CHARS, holes
from fimserver.ab.items.parsing import parses
from fimserver.ab.items.spans import cut_spans, read_spans
from fimserver.errors import InputError
from fimserver.front.syntax.languages import GRAMMARS
from fimserver.front.syntax.parser import blocks

PYTHON = '''import os


class Cat:
    """A cat — 🐈."""

    def name(self, other):
        # what it is called
        first = other.first + "🐈"
        last = other.last
        return first, last  # both

    def feed(self, food):
        if food:
            self.fed = [
                food,
            ]
            self.happy = True
        return self
'''
JAVASCRIPT = """class Cat {
  name(other) {
    const first = other.first + "é";
    const last = other.last;
    return [first, last];
  }
}

const feed = (food) => {
  log(food);
  return food + 1;
};
"""
GO = """package cat

type Cat struct {
\tName string
\tAge  int
}

func (c *Cat) Feed(food int) int {
\teaten := food + 1 // more
\tc.Age = eaten
\treturn eaten
}
"""
RUST = """struct Cat {
    name: String,
    age: i32,
}

impl Cat {
    fn feed(&mut self, food: i32) -> i32 {
        let eaten = food + 1;
        self.age = eaten;
        eaten
    }
}
"""
C = """#include <stdio.h>
#include <stdlib.h>

static int feed(int food)
{
    int eaten = food + 1;
    printf("%d", eaten);
    return eaten;
}
"""
RUBY = """class Cat
  def feed(food)
    eaten = food + 1
    @age = eaten
    eaten
  end
end
"""
LUA = """local function feed(food)
  local eaten = food + 1
  print(eaten)
  return eaten
end
"""
BASH = """feed() {
  eaten=$1
  echo "$eaten"
}
"""
FILES = {
    "cat.py": PYTHON,
    "cat.js": JAVASCRIPT,
    "cat.ts": JAVASCRIPT,
    "cat.go": GO,
    "cat.rs": RUST,
    "cat.c": C,
    "cat.rb": RUBY,
    "cat.lua": LUA,
    "cat.sh": BASH,
}
BODIES = {
    "cat.py": 'first = other.first + "🐈"\n        last = other.last\n        return first, last  # both',
    "cat.js": "log(food);\n  return food + 1;",
    "cat.ts": "log(food);\n  return food + 1;",
    "cat.go": "eaten := food + 1 // more\n\tc.Age = eaten\n\treturn eaten",
    "cat.rs": "let eaten = food + 1;\n        self.age = eaten;\n        eaten",
    "cat.c": 'int eaten = food + 1;\n    printf("%d", eaten);\n    return eaten;',
    "cat.rb": "eaten = food + 1\n    @age = eaten\n    eaten",
    "cat.lua": "local eaten = food + 1\n  print(eaten)\n  return eaten",
    "cat.sh": 'eaten=$1\n  echo "$eaten"',
}
BLOCKS = {
    "cat.py": "self.fed = [\n                food,\n            ]\n            self.happy = True",
    "cat.js": 'const first = other.first + "é";\n    const last = other.last;',
    "cat.ts": "const last = other.last;\n    return [first, last];",
    "cat.go": "c.Age = eaten\n\treturn eaten",
    "cat.rs": "name: String,\n    age: i32,",
    "cat.c": "#include <stdio.h>\n#include <stdlib.h>",
    "cat.rb": "eaten = food + 1\n    @age = eaten",
    "cat.lua": "print(eaten)\n  return eaten",
    "cat.sh": 'eaten=$1\n  echo "$eaten"',
}


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def git(folder, *arguments):
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True)  # noqa: S607


def middles(language, text, kind):
    return {text[slice(*hole)] for hole in holes(language, text, random.Random(0))[kind]}


def all_spans(folder, **kwargs):
    return cut_spans(folder, 10_000, 0, **kwargs).spans


class TestOneFile:
    @pytest.mark.parametrize("name", FILES)
    def test_bodies_and_blocks_are_what_a_person_calls_so(self, name, tmp_path):
        write(tmp_path, {name: FILES[name]})
        found = [(span.kind, span.middle) for span in all_spans(tmp_path, kinds=["body"])]
        assert ("body", BODIES[name]) in found
        found = [(span.kind, span.middle) for span in all_spans(tmp_path, kinds=["block"])]
        assert ("block", BLOCKS[name]) in found

    @pytest.mark.parametrize("ends", ["\n", "\r\n"])
    @pytest.mark.parametrize("name", FILES)
    def test_each_span_is_its_file_cut_in_three(self, name, ends, tmp_path):
        text = FILES[name].replace("\n", ends)
        write(tmp_path, {name: text})
        spans = all_spans(tmp_path)
        assert {span.kind for span in spans} == set(KINDS)
        for span in spans:
            assert span.prefix + span.middle + span.suffix == text
            assert span.suffix.startswith(ends) or span.kind == "body"
            assert 0 < len(span.middle.strip()) <= len(span.middle) <= MIDDLE_CHARS
            assert not span.middle.endswith(("\r", "\n"))
            assert span.group == name
            assert GRAMMARS[span.language]

    def test_crlf_makes_no_other_spans(self):
        for kind in KINDS:
            unix, windows = (
                middles("python", PYTHON, kind),
                middles("python", PYTHON.replace("\n", "\r\n"), kind),
            )
            assert {middle.replace("\r\n", "\n") for middle in windows} == unix

    def test_a_line_begins_behind_its_indentation_and_holds_code(self):
        lines = middles("python", PYTHON, "line")
        assert "return first, last  # both" in lines
        assert not [line for line in lines if line.startswith(("#", '"""', " "))]
        assert "]" not in lines

    @pytest.mark.parametrize("seed", range(20))
    def test_the_rest_of_a_line_begins_at_an_edge_of_a_token(self, seed):
        text = "if total_count == limit:  # enough\n"
        starts = {hole[0] for hole in holes("python", text, random.Random(seed))["line_rest"]}
        assert len(starts) == 1
        assert starts <= {2, 3, 14, 15, 16, 17, 18, 23}

    def test_comments_and_strings_begin_no_line(self):
        text = '"""One.\n\nTwo words.\n"""\n# three\nx = 1\n'
        assert middles("python", text, "line") == {"x = 1"}
        assert all(middle.strip() in {"= 1", "1"} for middle in middles("python", text, "line_rest"))

    def test_blocks_have_two_to_eight_lines_of_whole_statements(self):
        text = "def f():\n" + "".join(f"    a{i} = {i}\n" for i in range(30)) + "    b = 1; c = 2\n"
        found = middles("python", text, "block")
        assert {middle.count("\n") + 1 for middle in found} == set(BLOCK_LINES)
        assert not [middle for middle in found if middle.endswith("b = 1;")]

    def test_no_body_is_longer_than_the_limits(self):
        short = "def f():\n" + "    a = 1\n" * BODY_LINES
        assert middles("python", short, "body")
        assert not middles("python", short + "    a = 1\n", "body")
        assert not middles("python", "def f():\n" + f"    a = '{'x' * MIDDLE_CHARS}'\n", "body")

    @pytest.mark.parametrize(
        "text", ["function f() {}\n", "function f() { return 1; }\n", "function f() {\n  // later\n}\n"]
    )
    def test_empty_bodies_and_those_on_the_header_are_none(self, text):
        assert not middles("javascript", text, "body")

    @pytest.mark.parametrize(
        ("language", "text"),
        [
            ("json", '{\n  "a": [1, 2],\n  "b": {"c": 1}\n}\n'),
            ("yaml", "a:\n  b: 1\n  c: 2\n"),
            ("html", "<body>\n<p>one</p>\n<p>two</p>\n</body>\n"),
            ("css", "a {\n  color: red;\n  margin: 0;\n}\n"),
        ],
    )
    def test_data_gives_lines_only(self, language, text):
        found = holes(language, text, random.Random(0))
        assert {kind for kind, options in found.items() if options} == {"line", "line_rest"}
        assert blocks(language, text) == ()

    @pytest.mark.parametrize("language", GRAMMARS)
    def test_broken_text_raises_nothing(self, language):
        for text in ("", "\n", "}", "def f(:\n  (", PYTHON[:-40], C[:-5], "\r", "x\r\ny", "\ufeffx = 1\n"):
            holes(language, text, random.Random(0))

    def test_blocks_count_characters(self):
        owned = [block for block in blocks("python", PYTHON) if block.owner]
        texts = [(PYTHON[slice(*block.owner)], PYTHON[slice(*block.span)]) for block in owned]
        assert [(owner.split("(")[0].split(":")[0], body.split("\n")[0]) for owner, body in texts] == [
            ("class Cat", '"""A cat — 🐈."""'),
            ("def name", 'first = other.first + "🐈"'),
            ("def feed", "if food:"),
        ]


class TestFolder:
    def test_kinds_come_in_turn_and_files_share_them(self, tmp_path):
        write(tmp_path, {f"a{i}.py": PYTHON.replace("Cat", f"Cat{i}") for i in range(8)})
        spans = cut_spans(tmp_path, 16, 0).spans
        assert [span.kind for span in spans] == list(KINDS) * 4
        assert set(Counter(span.group for span in spans).values()) == {2}

    def test_a_kind_that_runs_out_leaves_its_turns_to_others(self, tmp_path):
        write(tmp_path, {"a.py": PYTHON})
        spans = all_spans(tmp_path)
        counts = Counter(span.kind for span in spans)
        assert counts["line"] > counts["body"] > 0
        assert len({span.item for span in spans}) == len(spans)
        assert len({(span.prefix, span.middle) for span in spans}) == len(spans)

    def test_the_same_files_and_seed_give_the_same_spans(self, tmp_path):
        one, two = (write(tmp_path / name, FILES) for name in ("one", "two"))
        assert cut_spans(one, 30, 5) == cut_spans(two, 30, 5)
        assert cut_spans(one, 30, 5) != cut_spans(one, 30, 6)

    def test_copies_of_a_file_give_nothing_new(self, tmp_path):
        write(tmp_path / "one", {"a.py": PYTHON})
        write(tmp_path / "two", {"a.py": PYTHON, "b/c.py": PYTHON})
        # The rest of a line is drawn for each file.
        kinds = ["line", "block", "body"]
        assert len(all_spans(tmp_path / "two", kinds=kinds)) == len(all_spans(tmp_path / "one", kinds=kinds))

    def test_only_the_kinds_that_are_asked_for(self, tmp_path):
        write(tmp_path, FILES)
        assert {span.kind for span in all_spans(tmp_path, kinds=["line", "body"])} == {"line", "body"}
        with pytest.raises(InputError, match=r"'word'.*line_rest, line, block, body"):
            cut_spans(tmp_path, 5, 0, kinds=["word"])

    def test_of_a_work_tree_tracked_files_count(self, tmp_path):
        write(
            tmp_path,
            {
                "a.py": PYTHON,
                "sub/b c.py": PYTHON + "x = 1\n",
                "sub/ü.py": PYTHON + "y = 1\n",
                "new.py": PYTHON,
            },
        )
        git(tmp_path, "init")
        git(tmp_path, "add", "a.py", "sub")
        assert {span.group for span in all_spans(tmp_path)} == {"a.py", "sub/b c.py", "sub/ü.py"}
        assert {span.group for span in all_spans(tmp_path / "sub")} == {"b c.py", "ü.py"}

    def test_a_folder_in_a_work_tree_that_git_does_not_track_counts_whole(self, tmp_path):
        write(tmp_path, {"a.py": PYTHON, ".gitignore": "lib\n", "lib/b.py": PYTHON})
        git(tmp_path, "init")
        git(tmp_path, "add", "a.py")
        assert {span.group for span in all_spans(tmp_path / "lib")} == {"b.py"}

    def test_a_tracked_file_that_is_gone_is_counted(self, tmp_path):
        write(tmp_path, {"a.py": PYTHON, "b.py": PYTHON})
        git(tmp_path, "init")
        git(tmp_path, "add", ".")
        (tmp_path / "b.py").unlink()
        assert cut_spans(tmp_path, 10_000, 0).skipped == {"no file, or a link": 1}

    def test_what_is_not_for_completion_is_left_out_and_counted(self, tmp_path):
        write(
            tmp_path,
            {
                "a.py": PYTHON,
                "README.md": "Hello\n",
                "latin.py": "x = 'é'\n".encode("latin-1"),
                "binary.py": b"x = 1\0\n",
                "big.py": "x = 1\n" * 200_000,
                "empty.py": "",
                "blank.py": "\n\n",
                "tool.min.js": "let a = 1;\n",
                "made.py": "# This file is generated by a tool\n" + PYTHON,
                "secrets.json": '{"a": 1}\n',
                ".fimignore": "mine.py\n",
                "mine.py": PYTHON,
                ".hidden/b.py": PYTHON,
                "node_modules/c.js": JAVASCRIPT,
                "__pycache__/d.py": PYTHON,
                ".venv/lib/e.py": PYTHON,
            },
        )
        (tmp_path / "link.py").symlink_to(tmp_path / "a.py")
        cut = cut_spans(tmp_path, 10_000, 0)
        assert {span.group for span in cut.spans} == {"a.py"}
        assert cut.skipped == {
            "no language that fimserver parses": 1,
            "not UTF-8": 1,
            "binary": 1,
            "larger than 1 MiB": 1,
            "nothing to cut": 2,
            "generated or minified": 2,
            "private or ignored": 2,
            "no file, or a link": 1,
        }

    @pytest.mark.parametrize(
        "files", [{}, {"README.md": "Hello\n"}, {"a.py": ""}, {"secrets.json": '{"a": 1}\n'}]
    )
    def test_a_folder_without_a_usable_file_says_so(self, files, tmp_path):
        write(tmp_path, files)
        with pytest.raises(
            InputError, match="no source file in a language that fimserver parses: give another folder"
        ):
            cut_spans(tmp_path, 5, 0)

    def test_a_file_or_nothing_is_no_folder(self, tmp_path):
        for path in (tmp_path / "none", *write(tmp_path, {"a.py": PYTHON}).glob("a.py")):
            with pytest.raises(InputError, match="is not a folder: give one"):
                cut_spans(path, 5, 0)

    def test_a_work_tree_that_git_cannot_read_says_so(self, tmp_path):
        write(tmp_path, {"a.py": PYTHON, ".git": "gitdir: /nowhere\n"})
        with pytest.raises(
            InputError, match=r"git cannot list .*\(.*/nowhere.*\).*give a copy without \.git"
        ):
            cut_spans(tmp_path, 5, 0)

    def test_a_work_tree_without_git_says_so(self, tmp_path, monkeypatch):
        write(tmp_path, {"a.py": PYTHON, ".git/HEAD": "ref: refs/heads/main\n"})
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(InputError, match="install git"):
            cut_spans(tmp_path, 5, 0)


class TestFileOfSpans:
    ROW = {"prefix": "x = ", "middle": "1", "suffix": "\n"}

    def read(self, tmp_path, *lines, limit=100):
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        return read_spans(write(tmp_path, {"spans.jsonl": text}) / "spans.jsonl", limit)

    def test_rows_of_humaneval_infilling_are_read_by_their_own_names(self, tmp_path):
        row = {
            "task_id": "SingleLineInfilling/1",
            "prompt": "x = ",
            "canonical_solution": "1",
            "suffix": "\n",
            "test": "…",
        }
        path = write(tmp_path, {"spans.jsonl": json.dumps(row) + "\n"}) / "spans.jsonl"
        (span,) = read_spans(path, 5).spans
        assert (span.item, span.prefix, span.middle, span.suffix) == (
            "SingleLineInfilling/1",
            "x = ",
            "1",
            "\n",
        )

    def test_rows_become_spans(self, tmp_path):
        full = {"id": "one", "path": "a/b.py", "kind": "line", "language": "Python", "extra": 1}
        cut = self.read(
            tmp_path, self.ROW | full, "", self.ROW, self.ROW | {"group": "g", "path": "c.rs"}, ""
        )
        assert [span[:4] for span in cut.spans] == [
            ("one", "a/b.py", "line", "python"),
            (cut.spans[1].item, "spans.jsonl", "span", ""),
            (cut.spans[2].item, "g", "span", "rust"),
        ]
        assert len({span.item for span in cut.spans}) == 3
        assert {span[4:] for span in cut.spans} == {("x = ", "1", "\n")}
        assert cut.skipped == {}

    def test_the_first_ones_up_to_the_limit(self, tmp_path):
        rows = [self.ROW | {"id": str(i)} for i in range(5)]
        assert [span.item for span in self.read(tmp_path, *rows, limit=2).spans] == ["0", "1"]

    def test_bad_rows_are_counted_with_the_first_line(self, tmp_path):
        bad = {"prefix": "", "suffix": ""}
        empty = self.ROW | {"middle": " \n"}
        cut = self.read(tmp_path, self.ROW, bad, "{", "[]", bad, empty, self.ROW)
        assert len(cut.spans) == 1
        assert sum(cut.skipped.values()) == 6
        assert cut.skipped["middle: Field required (first in line 2)"] == 2
        assert cut.skipped["middle: is empty (first in line 6)"] == 1
        assert cut.skipped["has an id that came before (first in line 7)"] == 1

    @pytest.mark.parametrize(
        "text",
        [b"", b"\n\n", b"{}\n", b"\xff\xfe\n", b"[1]", b'{"prefix": "\\ud800", "middle": "1", "suffix": ""}'],
    )
    def test_a_file_without_a_usable_row_says_so(self, text, tmp_path):
        write(tmp_path, {"spans.jsonl": text})
        with pytest.raises(InputError, match="no row with the texts prefix, middle and suffix"):
            read_spans(tmp_path / "spans.jsonl", 5)

    def test_a_file_that_is_not_there_says_so(self, tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_spans(tmp_path / "none.jsonl", 5)


class TestParses:
    @pytest.mark.parametrize(
        ("language", "prefix", "gold", "suffix", "good", "bad"),
        [
            ("python", "def f(a):\n    x = ", "a + 1", "\n    return x\n", "g(a)", "g(a"),
            (
                "python",
                "class A:\n    def f(self):\n        ",
                "return 1",
                "\n\n    y = 2\n",
                "pass",
                "return (",
            ),
            (
                "javascript",
                "class A {\n  m() {\n    ",
                "a();",
                "\n  }\n}\n",
                "if (b) { c(); }",
                "a();\n  }\n}",
            ),
            ("typescript", "class A {\n  m(): number {\n    return ", "1;", "\n  }\n}\n", "this.a;", "(1;"),
            (
                "java",
                "class A {\n    int f() {\n        ",
                "return 1;",
                "\n    }\n}\n",
                "return 2;",
                "return 1; }",
            ),
            ("go", "package a\n\nfunc f() int {\n\t", "return 1", "\n}\n", "return 2", "return ("),
            ("json", '{\n  "a": ', "1", "\n}\n", "[1, 2]", "[1"),
        ],
    )
    def test_the_function_around_is_asked(self, language, prefix, gold, suffix, good, bad):
        assert parses(language, prefix, gold, suffix, gold) is True
        assert parses(language, prefix, good, suffix, gold) is True
        assert parses(language, prefix, bad, suffix, gold) is False

    def test_damage_outside_of_the_function_does_not_count(self):
        broken = "\n\nx = = 3 )\n"
        assert parses("python", "def f(a):\n    return ", "b", broken, "a") is True
        assert parses("python", "def f(a):\n    return ", "(b", broken, "a") is False

    def test_it_cannot_be_said_of_plain_text_and_of_what_was_broken(self):
        assert parses("", "def f(", "a", "):\n", "b") is None
        assert parses("klingon", "x = ", "1", "\n", "1") is None
        assert parses("python", "def f(:\n    return ", "a", "\n", "b") is None
        assert parses("python", "x = ", "a", ")\n", "b") is None
