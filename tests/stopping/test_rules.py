"""Where a middle ends: by suffix, brackets and indentation, statements, and repeated lines."""

from __future__ import annotations

import time

import pytest

from fimserver.reasons import Reason
from fimserver.stopping.around import Around
from fimserver.stopping.rules import RULES, Endings
from fimserver.types import StopRule


def read(
    cursor: str,
    written: str,
    language: str = "python",
    stop: StopRule = "none",
    rules: frozenset[str] = RULES,
    step: int = 3,
) -> tuple[str, Reason | None, int]:
    """The middle, why it ended, and how many characters of ``written`` were needed, when ``step`` come at a time.

    ``cursor``: the text around it, with ``|`` where it is.
    """
    prefix, _, suffix = cursor.partition("|")
    endings = Endings(Around(prefix, suffix, language), stop, rules)
    for used in [*range(step, len(written), step), len(written)]:
        text = written[:used]
        if end := endings.end(text):
            return text[: end.chars], end.reason, used
    return written, None, len(written)


class TestTheTextHasJoinedTheSuffix:
    def test_when_its_next_line_is_the_next_line_below(self):
        cursor = "def f(xs):\n    total = 0\n    |\n    return sum_of_all(total, xs)\n"
        written = "for x in xs:\n        total += x\n    return sum_of_all(total, xs)\n\ndef g():\n"
        middle, reason, used = read(cursor, written)
        assert (middle, reason) == ("for x in xs:\n        total += x", Reason.SUFFIX)
        assert used < written.index("\n\ndef") + 3, "not a token after the line that repeats"

    def test_white_space_aside(self):
        cursor = "    |\n    print_the_whole_report(a)\n"
        assert read(cursor, "b = 1\n      print_the_whole_report(a)\nc\n")[:2] == ("b = 1", Reason.SUFFIX)

    def test_a_short_line_needs_the_one_after_it(self):
        cursor = "    |\n    x = 1\n    y = 2\n    z = 3\n"
        assert read(cursor, "x = 1\n    w = 5\n    q = 1\n")[1] is None
        assert read(cursor, "w = 5\n    x = 1\n    y = 2\n")[:2] == ("w = 5", Reason.SUFFIX)

    def test_a_return_that_stands_below_at_the_same_depth_is_enough(self):
        cursor = "def f():\n    |\n    return x\n\n\ndef g():\n    pass\n"
        assert read(cursor, "x = 1\n    return x\n\n")[:2] == ("x = 1", Reason.SUFFIX)
        assert read(cursor, "if y:\n        return x\n    x = 2\n")[1] is None

    def test_not_within_a_bracket_that_the_middle_opened(self):
        cursor = "x = |\nsome_function_of_mine(1)\n"
        written = "lambda: {\nsome_function_of_mine(1)\n}\n"
        assert read(cursor, written, "javascript")[1] is not Reason.SUFFIX

    def test_where_a_bracket_on_the_cursors_line_is_closed_already(self):
        assert read("print(|)\n", "a, b)\nprint(c)\n")[:2] == ("a, b", Reason.SUFFIX)
        assert read("print(f(|)\n", "a), b)\nprint(c)\n")[:2] == ("a), b", Reason.SUFFIX)
        assert read("xs = [f(|)]\n", "a)]\n")[:2] == ("a", Reason.SUFFIX)

    def test_where_a_quote_after_the_cursor_closes_the_string(self):
        assert read('x = "|"\n', 'abc"\ny = 2')[:2] == ("abc", Reason.SUFFIX)
        assert read('x = f("|")\n', 'a(b)c")\ny = 2')[:2] == ("a(b)c", Reason.SUFFIX)

    def test_where_the_rest_of_the_cursors_line_comes_again(self):
        assert read("x = | + offset\n", "base + offset\ny", stop="line")[:2] == ("base", Reason.SUFFIX)
        assert read("x = |set\n", "offset\n", stop="line")[0] == "offset", "a word is not cut"

    def test_a_line_may_be_written_at_once_that_is_below(self):
        assert read("a = 1\n|\nprint_the_whole_report(a)\n", "print_the_whole_report(a)\n")[:2] == (
            "",
            Reason.SUFFIX,
        )


class TestTheScopeHasClosed:
    def test_with_a_line_that_is_indented_less(self):
        written = "return 1\n\n\ndef g():\n    return 2\n"
        middle, reason, used = read("def f():\n    |\n", written)
        assert (middle, reason) == ("return 1", Reason.SCOPE)
        assert used <= written.index("def") + 3

    def test_with_the_next_statement_where_the_cursor_was_in_a_header(self):
        assert read("def f(|\n", "a):\n    return a\n\ndef g(")[:2] == ("a):\n    return a", Reason.SCOPE)
        assert read("if a|\n", ":\n    b\nelse:\n    c\nd\n")[:2] == (":\n    b\nelse:\n    c", Reason.SCOPE)

    def test_not_with_lines_in_brackets_or_strings_of_the_middle(self):
        assert read("    |\n", "x = f(\n1,\n)\n    y = 2\n")[1] is None
        assert read("    |\n", 'x = """\nabc\n"""\n    y = 2\n')[1] is None

    @pytest.mark.parametrize("language", ["javascript", "go", "rust", "java", "c", "c_sharp"])
    def test_with_a_brace_that_the_suffix_has(self, language):
        cursor = "void f() {\n    |\n}\n\nvoid g() {\n}\n"
        assert read(cursor, "a();\n    if (b) {\n        c();\n    }\n}\n\nvoid", language)[:2] == (
            "a();\n    if (b) {\n        c();\n    }",
            Reason.SCOPE,
        )

    @pytest.mark.parametrize("language", ["javascript", "go", "rust", "java", "c"])
    def test_after_a_brace_that_the_suffix_lacks(self, language):
        cursor = "void f() {\n    |"
        assert read(cursor, "a();\n}\n\nvoid g() {\n", language)[:2] == ("a();\n}", Reason.SCOPE)
        assert read(cursor, "if (a) {\n    b();\n    } else {\n    c();\n    }\n}\nx\n", language)[
            0
        ].endswith("    }\n}")

    def test_after_a_bracket_of_a_literal_that_the_suffix_lacks_nothing_ends(self):
        assert read("xs = [\n    1,\n    |\n", "2,\n]\nys = 1\n")[0].startswith("2,\n]")

    @pytest.mark.parametrize(
        ("language", "header", "word"),
        [
            ("ruby", "def f", "end"),
            ("lua", "function f()", "end"),
            ("bash", "if a; then", "fi"),
            ("bash", "while a; do", "done"),
        ],
    )
    def test_with_a_word_that_closes_it(self, language, header, word):
        written = f"a\n{word}\n\nb\n"
        assert read(f"{header}\n  |\n", written, language)[:2] == (f"a\n{word}", Reason.SCOPE)
        assert read(f"{header}\n  |\n{word}\nb\n", written, language)[0] == "a"

    def test_what_goes_on_with_an_open_try_stays(self):
        written = "a()\nexcept E:\n    b()\nc()\n"
        assert read("try:\n    |\n", written)[:2] == ("a()\nexcept E:\n    b()", Reason.SCOPE)
        assert read("try:\n    |\nexcept E:\n    d()\n", written)[0] == "a()"

    def test_of_a_cursor_that_the_editor_did_not_indent(self):
        assert read("def f():\n|\n", "    return 1\nx = 2\n")[:2] == ("    return 1", Reason.SCOPE)

    def test_brackets_in_strings_and_comments_do_not_count(self):
        assert read("print(|)\n", "'a)b', c)\n")[0] == "'a)b', c"
        assert read("f(\n    |\n)\n", "a,  # 1) first\n    b,\n)\n")[0] == "a,  # 1) first\n    b,"
        assert read("f(|)", "'\\'', a)\n")[0] == "'\\'', a"

    def test_a_block_that_was_asked_for_says_so(self):
        assert read("def f():\n    |\n", "return 1\nx\n", stop="block")[1] is Reason.BLOCK


class TestTheMiddleGoesOnToSomethingElse:
    @pytest.mark.parametrize(
        ("language", "first", "second"),
        [
            ("python", "def pop(self):\n        return self.items.pop()", "def peek(self):"),
            ("python", "@property\n    def size(self):\n        return 1", "@property"),
            ("python", "class A:\n        x = 1", "async def f():"),
            ("typescript", "export function f() {\n        g();\n    }", "export default class A {"),
            ("go", "func f() {\n        g()\n    }", "func g() {"),
            ("rust", "pub fn f() {\n        g();\n    }", "pub(crate) fn g() {"),
        ],
    )
    def test_a_second_definition(self, language, first, second):
        written = f"{first}\n\n    {second}\n        x\n"
        middle, reason, used = read("    |\n", written, language)
        assert (middle, reason) == (first, Reason.SCOPE)
        assert used < written.rindex(second) + len(second) + 3, "not a line of the second is waited for"

    def test_the_comments_above_a_second_definition_are_its_own(self):
        written = "def f():\n    return 1\n\n\n# g is\n# another\ndef g():\n"
        assert read("|\n", written)[0] == "def f():\n    return 1"
        written = "func f() {\n\tg()\n}\n\n/*\n * another\n */\nfunc g() {\n"
        assert read("|\n", written, "go")[0] == "func f() {\n\tg()\n}"

    def test_a_definition_within_another_and_a_statement_after_it_stay(self):
        written = (
            "def outer():\n        def inner():\n            return 1\n        return inner\n    x = 2\n"
        )
        assert read("    |\n", written)[1] is None

    def test_definitions_without_a_body_stay(self):
        written = "@overload\ndef f(x: int) -> int: ...\n@overload\ndef f(x: str) -> str: ...\n"
        assert read("|\n", written)[1] is None

    def test_what_may_become_a_second_definition_is_held_back(self):
        endings = Endings(Around("", "\n", "python"), "none")
        text = "def f():\n    return 1\n\n# g\nde"
        assert endings.end(text) is None
        assert text[: endings.settled(text)] == "def f():\n    return 1"

    @pytest.mark.parametrize("language", ["toml", "python", "c"])
    def test_the_end_of_the_code_block_of_an_answer(self, language):
        assert read("a = 1\n|\n", "b = 2\n```\n\nThis sets b.\n", language)[:2] == ("b = 2", Reason.SCOPE)

    def test_what_may_become_such_an_end_is_held_back(self):
        endings = Endings(Around("a = 1\n", "\n", "toml"), "none")
        assert endings.end("b = 2\n``") is None
        assert endings.settled("b = 2\n``") == 5

    def test_a_fence_stays_where_it_is_meant(self):
        assert read("a\n|\n", "b\n```\nc\n", "markdown")[1] is None
        assert read("# ```\n# a\n|\n", "b\n```\nc\n")[1] is None
        assert read('"""A.\n|\n"""\n', "b\n```\nc\n")[1] is None


def test_the_start_of_the_rest_of_the_line_is_held_back():
    endings = Endings(Around("  <title>", "</title>\n", "html"), "line")
    text = "Home</titl"
    assert endings.end(text) is None
    assert text[: endings.settled(text)] == "Home"
    assert endings.end("Home</title>").chars == 4
    assert Endings(Around("x = ", " + y\n", "python"), "line").settled("a + b") == 5, "something else came"


class TestOneLine:
    def test_ends_before_a_blank_line_below_complete_code(self):
        assert read("import json|\nimport os\n", "\n\ndef f():\n", stop="line")[:2] == ("", Reason.LINE)
        assert read("import json|\nimport os\n", "\nimport re\n", stop="line")[0] == "\nimport re"
        assert read("|\nx = 1\n", "\n\ny = 2\n", stop="line")[0] == "\n\ny = 2"

    def test_ends_with_its_newline(self):
        assert read("x = |\n", "1\ny = 2\n", stop="line")[:2] == ("1", Reason.LINE)

    @pytest.mark.parametrize("language", ["javascript", "typescript", "rust", "java", "c", "cpp", "c_sharp"])
    def test_ends_with_a_statement_that_is_complete(self, language):
        assert read("  x = |\n", "f(';', 1); g();", language, "line", step=1) == (
            "f(';', 1);",
            Reason.STATEMENT,
            10,
        )

    def test_does_not_end_within_the_head_of_a_loop_or_in_python(self):
        assert read("for (|\n", "i = 0; i < n; i++) {\n", "c", "line")[:2] == (
            "i = 0; i < n; i++) {",
            Reason.LINE,
        )
        assert read("x = |\n", "1; y = 2\n", "python", "line")[0] == "1; y = 2"


class TestLinesComeAgain:
    def test_at_once(self):
        written = "names.append(a)\nnames.append(a)\nnames.append(a)\n"
        assert read("|\n", written)[:2] == ("names.append(a)", Reason.REPEATED)

    def test_as_a_block(self):
        block = "first(a)\nsecond(b)\n"
        assert read("|\n", block * 3)[:2] == (block.rstrip(), Reason.REPEATED)

    def test_as_the_block_above_the_cursor(self):
        block = "first(a)\nsecond(b)\nthird(c)\n"
        assert read(block + "|\n", block * 2)[:2] == ("", Reason.REPEATED)

    def test_within_a_line(self):
        assert read("x = |\n", "a, " * 80, stop="line")[1] is Reason.REPEATED

    def test_a_sentence_of_prose(self):
        cursor = "Apples are red. Bananas are |\n"
        written = "yellow. Apples are red. Bananas are yellow."
        assert read(cursor, written, "markdown", step=1) == ("yellow.", Reason.REPEATED, 23)
        assert read("|\n", "It is so. We know. It is so. ", "")[0] == "It is so. We know."
        assert read("|\n", "It is so. We know. It is so good. ", "")[1] is None
        assert read("|\n", "Yes. No. Yes. No.", "")[1] is None, "short ones may come again"
        assert read("|\n", "s = 'It is so. It is so.'", "python")[1] is None

    def test_what_may_become_a_sentence_again_is_held_back(self):
        endings = Endings(Around("Apples are red. ", "\n", "markdown"), "line")
        assert endings.end("Pears too. Apples are") is None
        assert endings.settled("Pears too. Apples are") == len("Pears too.")
        assert endings.settled("Pears too. Apples have") == len("Pears too. Apples have")

    def test_but_closers_and_blank_lines_may(self):
        assert read("|\n", "a(\n(\n[\n]\n)\n)\n\n\n\nb\n")[1] is None


@pytest.mark.parametrize(
    ("rule", "cursor", "written", "stop"),
    [
        ("suffix", "|\nprint_the_whole_report(a)\n", "b\nprint_the_whole_report(a)\nc\n", "none"),
        ("scope", "def f():\n    |\n", "return 1\nx = 2\n", "none"),
        ("statement", "  x = |\n", "1; y", "line"),
        ("repetition", "|\n", "first(a)\nfirst(a)\nsecond(b)\n", "none"),
    ],
)
def test_a_rule_that_is_switched_off_ends_nothing(rule, cursor, written, stop):
    language = "c" if rule == "statement" else "python"
    assert read(cursor, written, language, stop)[1] is not None
    assert read(cursor, written, language, stop, rules=RULES - {rule})[1] is None


@pytest.mark.parametrize("step", [1, 2, 5, 1000])
def test_the_size_of_steps_does_not_matter(step):
    """Tokens may have any length: the end depends only on the text."""
    for cursor, written, language in [
        ("def f():\n    |\n    return finish_it(a, b)\n", "a = 1\n    return finish_it(a, b)\nx\n", "python"),
        ("void f() {\n    |\n}\n", "a();\n}\n\n", "c"),
        ("def f\n  |\n", "a\nend\n\nb\n", "ruby"),
        ("def f():\n    |\n", "else_ = 1\n    elsewhere()\nelse_2 = 3\n", "python"),
    ]:
        assert read(cursor, written, language, step=step)[:2] == read(cursor, written, language, step=1)[:2]


def test_what_was_shown_is_part_of_the_middle():
    """Text that was shown is never removed when a rule ends the middle."""
    cursor = "def f():\n    |\n    x = finish_it(a, b)\n    return x\n"
    prefix, _, suffix = cursor.partition("|")
    for written in (
        "a = 1\n    x = finish_it(a, b)\n",
        "a\n    a\n",
        "return 1\n\n\n\ndef g():\n",
        "b\n    b = 1\n\n  \nc",
    ):
        endings, shown = Endings(Around(prefix, suffix, "python"), "none"), 0
        for used in range(1, len(written) + 1):
            end = endings.end(written[:used])
            if end:
                assert end.chars >= shown
                break
            shown = max(shown, endings.settled(written[:used]))


def test_looking_ahead_changes_nothing():
    endings = Endings(Around("def f():\n    ", "\n", "python"), "none")
    assert endings.end("a = 1\n") is None
    assert endings.peek("a = 1\nb = 2\nc") is not None
    assert endings.end("a = 1\n    b = 2\n    c") is None


def test_a_token_costs_microseconds():
    """The bound is a hundred times the usual processor time."""
    prefix = "class C:\n" + "    def f(self, a):\n        return [a, (1, '2')]\n\n" * 300
    written = "    def g(self):\n        x = f(1)\n" + "".join(f"        x += g({i})\n" for i in range(60))
    endings = Endings(Around(prefix, prefix, "python"), "none")
    endings.end("")
    started = time.thread_time()
    for used in range(0, len(written), 4):
        endings.end(written[:used])
    assert (time.thread_time() - started) / (len(written) / 4) < 0.01
