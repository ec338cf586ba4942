"""Features of the text around a cursor, and the expected number of lines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fimserver.front.syntax.features import features, indent_unit
from fimserver.front.syntax.languages import GRAMMARS, is_makefile


def at(language, marked):
    prefix, suffix = marked.split("█")
    return features(language, prefix, suffix)


@pytest.mark.parametrize(
    ("language", "marked", "expected"),
    [
        ("python", "def f(a):\n    █\n\ndef g():\n    pass\n", {"empty_body": True, "block_opened": True, "blank_line": True, "indentation": 4, "expected_lines": 5}),
        ("python", "def f(a):█\n    return a\n", {"empty_body": False, "block_opened": True, "blank_line": False, "expected_lines": 3}),
        ("python", "def f(a):\n█\n    return a\n", {"empty_body": False, "block_opened": True, "expected_lines": 3}),
        ("python", "def f(a):\n█", {"empty_body": True, "block_opened": True, "indentation": 0}),
        ("python", "def f(a):\n    x = 1\n    █\n", {"block_opened": False, "blank_line": True, "expected_lines": 2}),
        ("python", "def f(a):  # why: (\n    █\n", {"block_opened": True, "bracket_debt": 0}),
        ("python", "class A:\n    def f(self): pass\n█\n", {"block_opened": False}),
        ("python", "    if a:\n█pass", {"right_text": True, "expected_lines": 1}),
        ("python", "x = f(a, █)\n", {"in_arguments": True, "bracket_debt": 0, "right_text": False, "expected_lines": 1}),
        ("python", "x = f(a, █\n", {"in_arguments": True, "bracket_debt": 1, "statement_end": False}),
        ("python", "x = [\n    1,\n    █\n]\n", {"in_arguments": True, "blank_line": True, "bracket_debt": 0, "expected_lines": 1}),
        ("python", "x = {\n    █\n}\n", {"in_arguments": True, "block_opened": True}),
        ("python", "x = '(█'\n", {"place": "string", "in_arguments": False, "bracket_debt": 0, "expected_lines": 1}),
        ("python", "x = 1  # see (█\n", {"place": "comment", "in_arguments": False, "bracket_debt": 0, "expected_lines": 1}),
        ("python", "x = f(a)█\n", {"statement_end": True, "expected_lines": 1}),
        ("python", "x = █\n", {"statement_end": False, "expected_lines": 1}),
        ("python", "    return█\n", {"statement_end": False}),
        ("python", "x = fo█o\n", {"mid_word": True, "right_text": True}),
        ("python", "x = fo█\n", {"mid_word": False}),
        ("python", "x = fo█)\n", {"mid_word": False, "right_text": False}),
        ("python", "\tif a:\n\t\t█\n", {"indentation": 8}),
        ("javascript", "function f(a) {\n  █\n}\n", {"empty_body": True, "in_arguments": False, "bracket_debt": 0, "expected_lines": 5}),
        ("javascript", "function f(a) {█", {"empty_body": True, "block_opened": True, "bracket_debt": 1}),
        ("javascript", "const a = {\n  b: █\n};\n", {"in_arguments": True}),
        ("javascript", "f((a) => {\n  █\n});\n", {"in_arguments": False, "empty_body": True, "bracket_debt": 0}),
        ("javascript", "return a;█\n", {"statement_end": True}),
        ("typescript", "interface A {\n  a: string;\n  █\n}\n", {"block_opened": False, "expected_lines": 2}),
        ("tsx", "const a = <p>█</p>;\n", {"right_text": True, "expected_lines": 1}),
        ("go", "func f() {\n\tx := []int{1, █}\n}\n", {"bracket_debt": 0, "expected_lines": 1}),
        ("rust", "fn f() {\n    let a = vec![█];\n}\n", {"in_arguments": True}),
        ("java", "class A {\n    █\n}\n", {"empty_body": True}),
        ("c", "int f(void) {\n    if (a) {\n        █\n    }\n}\n", {"empty_body": True, "bracket_debt": 0, "indentation": 8}),
        ("cpp", "int f() { return g(█", {"in_arguments": True, "bracket_debt": 2}),
        ("c_sharp", "class A {\n    int F() {█\n}\n", {"block_opened": True, "bracket_debt": 1}),
        ("ruby", "def f(a)\n  █\nend\n", {"empty_body": True, "expected_lines": 5}),
        ("ruby", "a.each do |b|\n  █\nend\n", {"empty_body": True}),
        ("lua", "local function f(a)\n  █\nend\n", {"empty_body": True}),
        ("lua", "if a then\n  b()\n  █\nend\n", {"block_opened": False}),
        ("bash", "if a; then\n  █\nfi\n", {"empty_body": True}),
        ("json", '{\n  "a": [1, █]\n}\n', {"in_arguments": True}),
        ("yaml", "a:\n  █\nb: 1\n", {"empty_body": True}),
        ("html", "<p>█</p>\n", {"right_text": True}),
        ("css", "a {\n  █\n}\n", {"empty_body": True}),
        (None, "Dear (all of █\n", {"place": "code", "in_arguments": True, "bracket_debt": 1}),
        (None, "It is so.█\n", {"statement_end": True, "blank_line": False}),
        (None, "█", {"blank_line": True, "expected_lines": 2, "indentation": 0}),
    ],
)  # fmt: skip
def test_features(language, marked, expected):
    seen = at(language, marked)
    assert {name: getattr(seen, name) for name in expected} == expected


def test_only_what_is_near_counts():
    far = "x = (\n" + "y\n" * 300
    assert features("python", far, "\n").bracket_debt == 0
    assert features("python", "x = (\n" + "y\n" * 30, "\n").bracket_debt == 1


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("def f():\n    a\n    if a:\n        b\n", "    "),
        ("a {\n  b {\n    c\n  }\n}\n", "  "),
        ("f() {\n\ta\n\tif b {\n\t\tc\n", "\t"),
        ("x = f(a,\n      b)\nif a:\n    b\n", "    "),
        ("a\nb\n", "    "),
        ("", "    "),
    ],
)
def test_the_unit_of_indentation_is_the_most_common_step(text, unit):
    assert indent_unit(text.splitlines(keepends=True)) == unit


def test_a_file_without_indentation_has_the_unit_that_is_asked_for():
    assert indent_unit(["a\n", "b\n"], default="") == ""
    assert indent_unit(["a {\n", "\tb\n"], default="") == "\t"


@pytest.mark.parametrize(
    ("language_id", "path", "is_one"),
    [
        ("makefile", "", True),
        ("make", "a/b", True),
        ("plaintext", "src/Makefile", True),
        ("", "GNUmakefile", True),
        ("", "rules.mk", True),
        ("", "Makefile.am", True),
        ("python", "makefile_tools.py", False),
        ("cmake", "CMakeLists.txt", False),
    ],
)
def test_recipes_of_make_are_known_by_language_or_name(language_id, path, is_one):
    assert is_makefile(language_id, path) is is_one


@given(
    st.sampled_from([None, *GRAMMARS]),
    st.text("ab1 \n\t()[]{}:;='\"#/<>", max_size=60),
    st.text('a \n)}"', max_size=20),
)
def test_any_text_has_features(language, prefix, suffix):
    seen = features(language, prefix, suffix)
    assert seen.expected_lines >= 1
    assert seen.bracket_debt >= 0
    assert not (seen.blank_line and seen.statement_end)
