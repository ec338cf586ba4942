"""The prompt context of a cursor, and its stability while the user types."""

import secrets

import pytest

from fimserver.front.context.auto_closers import paired_closers
from fimserver.front.context.definitions import Definitions
from fimserver.front.context.privacy import Privacy
from fimserver.front.context.prompt_context import (
    DEFINITION_CHARS,
    EDIT_CHARS,
    PREFIX_CHARS,
    STEP,
    SUFFIX_CHARS,
    TYPED_CHARS,
    WINDOW_CHARS,
    ContextSource,
    PromptContext,
)
from fimserver.front.context.whole_files import ALL_CHARS, FILE_CHARS
from fimserver.front.documents.mirror import Document, Edit, Position

PAIRS = {"(": ")", "[": "]", "{": "}", '"': '"', "'": "'"}
HEAD = "import os\n\ndef main(items):\n"
TAIL = "\n\nprint(main([1]))\n"


class Editor:
    """An editor that pairs brackets and quotes, types over closers, and sends a request after every key."""

    def __init__(self, source, text, line, *, pairs=True, uri="file:///me.py"):
        self.source, self.pairs = source, pairs
        self.document = Document(uri, "python", 1, text)
        self.line, self.column = line, len(self.document.lines[line].rstrip("\n"))
        self.before, self.after = "", ""

    def ask(self) -> PromptContext:
        return self.source.text(
            self.document.snapshot(Position(self.line, self.column)), self.before, self.after
        )

    def replace(self, start, end, text):
        self.document.change(self.document.version + 1, [Edit(start, end, text)], "utf-16")

    def key(self, char) -> PromptContext:
        here = (self.line, self.column)
        right = self.document.lines[self.line][self.column :]
        if not (self.pairs and char in PAIRS.values() and right.startswith(char)):
            closer = PAIRS.get(char, "") if self.pairs and (not right or right[0] in " \n)]},;:") else ""
            self.replace(here, here, char + closer)
        self.line, self.column = (self.line + 1, 0) if char == "\n" else (self.line, self.column + 1)
        return self.ask()

    def backspace(self) -> PromptContext:
        self.column -= 1
        self.replace((self.line, self.column), (self.line, self.column + 1), "")
        return self.ask()

    def write(self, text) -> list[PromptContext]:
        return [self.key(char) for char in text]


@pytest.fixture
def source(tmp_path):
    return source_of(tmp_path)


def source_of(root, clock=lambda: 0.0, globs=()):
    """A source for which no time passes, unless the test has its own clock: a busy machine changes nothing."""
    privacy = Privacy([root], globs)
    definitions = Definitions([root], privacy, run=lambda job: job())
    return ContextSource([root], privacy, definitions=definitions, clock=clock)


LINES = [
    "    total = sum(item.price for item in items)",
    "    names = [item['name'] for item in items if item.get(\"id\", (0, [1]))]",
    "    return {'total': total, \"names\": f(names[0], {1: (2, 3)})}",
    '    print("it\'s (almost) done :(")',
    "    '''A docstring.'''",
]


class TestTyping:
    @pytest.mark.parametrize("line", LINES)
    def test_only_the_typed_characters_are_new(self, source, line):
        editor = Editor(source, HEAD + "\n" + TAIL, 3)
        first = editor.ask()
        for count, context in enumerate(editor.write(line), start=1):
            assert context.suffix == first.suffix == "\n" + TAIL
            assert context.prefix == first.prefix + line[:count]
            assert context.typed_chars == count
        assert "".join(editor.document.lines) == HEAD + line + "\n" + TAIL

    @pytest.mark.parametrize("line", LINES)
    def test_the_start_of_a_long_prefix_stays(self, source, line):
        editor = Editor(source, "x = 1  # line\n" * 5000 + "\n" + TAIL, 5000)
        first = editor.ask()
        contexts = editor.write(line)
        assert PREFIX_CHARS - 2 * STEP < len(first.prefix) <= PREFIX_CHARS - STEP
        is_constant = all(
            context.prefix.startswith(first.prefix) and context.suffix == first.suffix for context in contexts
        )
        assert is_constant

    def test_the_start_moves_rarely_and_in_large_steps(self, source):
        editor = Editor(source, "x = 1\n" * 5000, 5000, pairs=False)
        starts = []
        for _ in range(300):
            for text in ("y = " + "1" * 95, "\n"):
                editor.replace((editor.line, editor.column), (editor.line, editor.column), text)
                editor.line, editor.column = (
                    (editor.line + 1, 0) if text == "\n" else (editor.line, len(text))
                )
                context = editor.ask()
                assert len(context.prefix) <= PREFIX_CHARS
                whole = "".join(editor.document.lines)
                starts.append(len(whole) - len(context.prefix) - len(context.suffix))
        assert len(set(starts)) <= 30_000 // STEP + 1
        assert starts == sorted(starts)

    def test_without_pairing_nothing_is_stripped_that_was_there(self, source):
        editor = Editor(source, "call(\n    a, )\n", 1, pairs=False)
        editor.column = len("    a, ")
        first = editor.ask()
        assert (first.suffix, first.stripped) == (")\n", "")
        for context in editor.write("foo(b"):
            assert (context.suffix, context.stripped) == (")\n", "")

    def test_what_was_stripped_is_told(self, source):
        editor = Editor(source, "\n", 0)
        assert editor.write('f(["x')[-1].stripped == '"])'
        whole = "".join(editor.document.lines)
        context = editor.ask()
        assert context.prefix + context.stripped + context.suffix == whole

    def test_the_anchor_moves_after_much_text_and_after_lines(self, source):
        editor = Editor(source, HEAD + "\n", 3, pairs=False)
        editor.ask()
        typed = [context.typed_chars for context in editor.write("x" * (TYPED_CHARS + 5))]
        assert typed == [*range(1, TYPED_CHARS + 1), 0, 1, 2, 3, 4]
        assert [context.typed_chars for context in editor.write("\n" * 5)] == [5, 6, 7, 0, 1]

    def test_deleting_what_was_typed_keeps_the_anchor_and_deleting_more_moves_it(self, source):
        editor = Editor(source, "abcdef\n", 0)
        editor.ask()
        editor.write("gh")
        assert [editor.backspace().typed_chars for _ in range(4)] == [1, 0, 0, 0]
        assert editor.key("x").typed_chars == 1

    def test_a_change_behind_the_cursor_moves_the_anchor(self, source):
        editor = Editor(source, HEAD + "\n" + TAIL, 3)
        editor.ask()
        assert editor.key("a").typed_chars == 1
        editor.replace((5, 0), (5, 0), "# new\n")
        assert editor.ask().typed_chars == 0


@pytest.mark.parametrize(
    ("left", "right", "closers"),
    [
        ("foo(", ")", ")"),
        ("foo(a, [", "])", "])"),
        ('foo("', '")', '")'),
        ("foo(", "))", ")"),
        ("foo()", ")", ""),
        ("x = ", ")", ""),
        ("foo(", " )", ""),
        ("foo(", "]", ""),
        ("foo(", ", b)", ""),
        ('x = """', '"""', '"""'),
        ('x = ""', '"', ""),
        ('"smile :(', '")', '"'),
        ('f"{a', '}"', '}"'),
        (r'"a\"', '"', '"'),
        ("fn f<'a>(x: &'a str, ", ") {", ")"),
        ("# don't (", ")", ")"),
        ("'it", "')", "'"),
        ("", ")", ""),
        ("(", "", ""),
    ],
)
def test_paired_closers(left, right, closers):
    assert paired_closers(left, right) == closers


class TestWindow:
    def test_prefix_and_suffix_end_at_lines(self, source):
        text = "".join(f"line = {i}\n" for i in range(10_000))
        context = Editor(source, text, 5000).ask()
        assert context.prefix.startswith("line = ")
        assert context.suffix.endswith("\n")
        assert SUFFIX_CHARS - 100 < len(context.suffix) <= SUFFIX_CHARS
        is_part = context.prefix + context.stripped + context.suffix in text
        assert is_part

    @pytest.mark.parametrize(
        ("text", "line", "column"), [("", 0, 0), ("x", 0, 1), ("\r\n\r\n", 1, 0), ("\n" * 50_000, 49_999, 0)]
    )
    def test_odd_documents(self, source, text, line, column):
        snapshot = Document("untitled:x", "plaintext", 1, text).snapshot(Position(line, column))
        context = source.text(snapshot)
        is_part = context.prefix + context.suffix in text.replace(
            "\r\n", "\n"
        )  # no comparison of long texts by pytest
        assert is_part
        assert len(context.prefix) <= PREFIX_CHARS

    def test_a_very_long_line_is_cut_where_it_stays_cut(self, source):
        editor = Editor(source, "x" * 100_000 + "\n", 0, pairs=False)
        first = editor.ask()
        assert PREFIX_CHARS - 2 * STEP < len(first.prefix) <= PREFIX_CHARS
        assert {len(context.prefix) - context.typed_chars for context in editor.write("y" * 50)} == {
            len(first.prefix)
        }

    def test_going_up_takes_the_window_along(self, source):
        editor = Editor(source, "x = 1\n" * 10_000, 9_000)
        editor.ask()
        editor.line, editor.column = 100, 0
        assert len(editor.ask().prefix) == len("x = 1\n") * 100

    def test_cells_of_a_notebook_stand_around(self, source):
        editor = Editor(source, "b = a\n", 0)
        editor.before, editor.after = "a = 1\n", "c = 2\n"
        context = editor.ask()
        assert (context.prefix, context.suffix) == ("a = 1\nb = a", "\nc = 2\n")
        assert editor.key("x").typed_chars == 1


def opened(root, files, language="python"):
    documents = {}
    for name, text in files.items():
        uri = (root / name).as_uri()
        documents[uri] = Document(uri, language, 1, text)
    return documents


TOPIC = "def load_invoice(customer_name):\n    return sum_of_positions(customer_name)\n"
MAIN = (
    "from shapes import make\n\ninvoice = load_invoice(customer_name)\ntotal = sum_of_positions(invoice)\n\n"
)


def build(source, root, documents, text=MAIN, **options):
    main = Document((root / "main.py").as_uri(), "python", 1, text)
    snapshot = main.snapshot(Position(len(main.lines) - 1, 0))
    return source.build(source.text(snapshot), snapshot, {main.uri: main, **documents}, **options)


def edit(source, document, line, text):
    document.change(document.version + 1, [Edit((line, 0), (line, 0), text)], "utf-16")
    source.edited(document, line)


class TestSnippets:
    def test_definitions_come_first_then_similar_windows_then_edits(self, tmp_path):
        (tmp_path / "shapes.py").write_text("def make(n):\n    return n\n")
        source, documents = (
            source_of(tmp_path),
            opened(tmp_path, {"a/topic.py": TOPIC, "notes.py": "one\ntwo\nthree\n"}),
        )
        edit(source, documents[(tmp_path / "notes.py").as_uri()], 1, "changed ")
        snippets = build(source, tmp_path, documents).snippets
        assert [snippet.path for snippet in snippets] == ["shapes.py", "a/topic.py", "notes.py"]
        assert snippets[0].text.startswith("def make(n):")
        assert "changed two" in snippets[2].text

    def test_the_same_events_give_the_same_snippets(self, tmp_path):
        files = {f"f{i}.py": TOPIC * (i + 1) for i in range(12)}
        seen = set()
        for _ in range(3):
            source, documents = source_of(tmp_path), opened(tmp_path, files)
            edit(source, documents[(tmp_path / "f3.py").as_uri()], 0, "# x\n")
            seen |= {build(source, tmp_path, documents).snippets for _ in range(2)}
        assert len(seen) == 1

    def test_snippets_stay_while_someone_types(self, tmp_path):
        source, documents = (
            source_of(tmp_path),
            opened(tmp_path, {f"f{i}.py": TOPIC * 3 + f"x{i} = 1\n" for i in range(6)}),
        )
        line = "result = customer_name.total(load_invoice)"
        seen = {
            build(source, tmp_path, documents, MAIN + line[:count]).snippets for count in range(len(line))
        }
        assert len(seen) == 1

    def test_characters_are_bounded(self, tmp_path):
        (tmp_path / "shapes.py").write_text(
            "".join(f"def make{i}(argument_{i}):\n    pass\n\n\n" for i in range(200))
        )
        text = "from shapes import " + ", ".join(f"make{i}" for i in range(200)) + "\n" + MAIN
        documents = opened(tmp_path, {f"f{i}.py": (TOPIC + "# long line\n" * 10) * 40 for i in range(20)})
        source = source_of(tmp_path)
        for document in documents.values():
            edit(source, document, 30, "x" * 500 + "\n")
        snippets = build(source, tmp_path, documents, text).snippets
        assert (
            sum(len(snippet.text) for snippet in snippets)
            <= DEFINITION_CHARS + WINDOW_CHARS + EDIT_CHARS
            <= 6000
        )

    def test_without_open_documents_there_are_none(self, tmp_path):
        source = source_of(tmp_path)
        snapshot = Document("file:///x.py", "python", 1, MAIN).snapshot(Position(0, 0))
        known = source.text(snapshot)
        assert source.build(known, snapshot, {}) is known

    def test_secrets_of_other_files_are_masked(self, tmp_path):
        documents = opened(tmp_path, {"topic.py": TOPIC + 'password = "hunter2hunter2"\n'})
        (snippet,) = build(source_of(tmp_path), tmp_path, documents).snippets
        assert "hunter2" not in snippet.text
        assert 'password = "<redacted>"' in snippet.text

    def test_open_files_are_given_whole_for_drafts(self, tmp_path):
        source = source_of(tmp_path)
        documents = opened(
            tmp_path, {"topic.py": TOPIC * 20, "key.py": 'password = "hunter2hunter2"\n', ".env": "A=1\n"}
        )
        files = {file.path: file.text for file in build(source, tmp_path, documents).lookup}
        assert files == {"topic.py": TOPIC * 20, "key.py": 'password = "<redacted>"\n'}
        documents[(tmp_path / "topic.py").as_uri()].change(2, [Edit((0, 0), (0, 0), "# new\n")], "utf-16")
        files = {file.path: file.text for file in build(source, tmp_path, documents).lookup}
        assert files["topic.py"] == "# new\n" + TOPIC * 20

    def test_whole_files_are_bounded(self, tmp_path):
        documents = opened(tmp_path, {f"f{i}.py": f"name_{i} = {i}\n" * 3000 for i in range(8)})
        files = build(source_of(tmp_path), tmp_path, documents).lookup
        assert [len(file.text) <= FILE_CHARS for file in files] == [True] * len(files)
        assert sum(len(file.text) for file in files) <= ALL_CHARS
        assert len(files) > 1

    def test_a_closed_document_feeds_nothing(self, tmp_path):
        source, documents = source_of(tmp_path), opened(tmp_path, {"topic.py": TOPIC})
        assert build(source, tmp_path, documents).snippets
        source.forget((tmp_path / "topic.py").as_uri())
        assert not build(source, tmp_path, {}).snippets

    def test_late_sources_are_left_out_until_there_is_time(self, tmp_path):
        ticks = iter(range(10_000))
        source = source_of(tmp_path, clock=lambda: next(ticks) * 0.004)  # every look at the clock takes 4 ms
        documents = opened(tmp_path, {f"f{i}.py": TOPIC + f"x{i} = 1\n" for i in range(12)})
        counts = [len(build(source, tmp_path, documents, budget_ms=10).snippets) for _ in range(8)]
        assert counts[0] < counts[-1] == 4
        assert build(source, tmp_path, documents, budget_ms=0).snippets  # what is known is given

    @pytest.mark.parametrize(
        "name",
        [
            ".env",
            "credentials.json",
            "id_rsa",
            "ignored.py",
            "globbed.py",
            "sub/private.py",
            "app.min.js",
            "config.tfvars",
        ],
    )
    def test_an_excluded_file_never_feeds_a_completion(self, tmp_path, name):
        """A canary in a file that is open, edited, similar and imported."""
        canary = f"canary_{secrets.token_hex(8)}"
        (tmp_path / ".gitignore").write_text("ignored.py\n")
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / ".fimignore").write_text("private.py\n")
        text = f"def {canary}():\n    pass\n\n\n" + TOPIC
        (tmp_path / name).write_text(text)
        source = source_of(tmp_path, globs=["globbed.py"])
        documents = opened(tmp_path, {name: text, "topic.py": TOPIC})
        edit(source, documents[(tmp_path / name).as_uri()], 0, f"# {canary}\n")
        imports = (
            f"from {name.removesuffix('.py').replace('/', '.')} import {canary}\n"
            if name.endswith(".py")
            else ""
        )
        for _ in range(2):
            context = build(source, tmp_path, documents, imports + MAIN)
            assert [snippet.path for snippet in context.snippets] == ["topic.py"]
            assert [file.path for file in context.lookup] == ["topic.py"]
            assert canary not in repr((context.snippets, context.lookup))

    def test_an_excluded_document_gets_nothing(self, tmp_path):
        source, documents = source_of(tmp_path), opened(tmp_path, {"topic.py": TOPIC})
        mine = Document((tmp_path / ".env").as_uri(), "plaintext", 1, MAIN)
        snapshot = mine.snapshot(Position(0, 0))
        assert not source.build(source.text(snapshot), snapshot, documents).snippets


def test_a_closed_document_leaves_nothing_behind(tmp_path):
    source, documents = source_of(tmp_path), opened(tmp_path, {"topic.py": TOPIC})
    edit(source, documents[(tmp_path / "topic.py").as_uri()], 0, "x = 1\n")
    build(source, tmp_path, documents)
    for name in ("topic.py", "main.py"):
        source.forget((tmp_path / name).as_uri())
    kept = (source._states, source._used, source._contents, source._edits._regions, source._whole._texts)
    assert not any(kept)
