"""Python's compiler gives the same result for a crop as for the whole file."""

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fimserver.front.syntax.python_compiler import crop_of


def compiles(text):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(text, "file", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


LONG_CLASS = "class A:\n" + "".join(
    f"    @property\n    def method_{i}(self):\n        for x in self:\n            print(x)\n        return {i}\n\n"
    for i in range(60)
)
LONG_FUNCTION = "def f(x):\n    global q\n" + "".join(
    f"    if x:\n        y = {i}\n    else:\n        y = [\n        1,\n    ]\n" for i in range(80)
)
FILE = (
    '"""A file\n\nof a module."""\n\nfrom __future__ import annotations\n\nimport os\n\n'
    + LONG_CLASS
    + "\n\nx = {\n    'a': 1,\n}\n\n"
    + LONG_FUNCTION
    + "    return x\n\n\nif os:\n    try:\n        x()\n    except ValueError:\n        pass\n"
)
LINES = FILE.split("\n")
MIDDLES = (
    "x = 1", "    pass", "  pass", "return 1", "break", "else:\n        pass", "x = 1\n  y = 2", "if x:\n    pass", "yield", "@a", ")", '"""',
    "await x", "nonlocal z", "from __future__ import division", "from os import *", "del x\n    x", "\n\tx = 1", "",
)  # fmt: skip


@given(
    st.integers(0, len(LINES) - 1),
    st.sampled_from(["blank", "start", "end", "middle"]),
    st.sampled_from(MIDDLES),
)
def test_a_crop_compiles_where_the_file_does(row, place, middle):
    line = LINES[row]
    blanks = line[: len(line) - len(line.lstrip())]
    column = {
        "blank": len(blanks),
        "start": len(blanks),
        "end": len(line),
        "middle": (len(blanks) + len(line)) // 2,
    }[place]
    prefix = "\n".join([*LINES[:row], line[:column]])
    suffix = "\n" * (place == "blank") + "\n".join([line[column:], *LINES[row + 1 :]])
    if place == "blank":
        suffix = "\n" + "\n".join(LINES[row:])
    fillers = ("pass", "") if place == "blank" else ("", "x")
    crop = crop_of(prefix, suffix, fillers)
    assert crop is not None or not any(compiles(prefix + filler + suffix) for filler in fillers)
    if crop is not None:
        assert (crop.error_line(middle) is None) == compiles(prefix + middle + suffix)


def test_a_crop_is_small():
    crop = crop_of(FILE[: FILE.index("return 50")], "\n" + FILE.partition("return 50")[2], ("return 1",))
    assert crop is not None
    assert crop.before.count("\n") < 130
    assert crop.after.count("\n") < 130


def test_of_a_function_of_a_hundred_lines_only_those_around_the_cursor_are_compiled():
    before = "def f(x):\n" + "".join(f"    y = {i}\n" for i in range(50)) + "    "
    crop = crop_of(before, "\n" + before.partition("\n")[2], ("pass",))
    assert crop is not None
    assert crop.before.count("\n") + crop.after.count("\n") < 20
    assert crop.error_line("return x") is None
    assert crop.error_line("x = 1\n   y = 2") == 1


def test_a_class_whose_header_is_too_far_above():
    prefix = "class A:\n" + "    def f(self):\n        return 1\n\n" * 1500
    crop = crop_of(prefix[-20_000:] + "    ", "\n", ("pass",))
    assert crop is not None
    assert crop.error_line("def g(self):\n        return 2") is None
    assert crop.error_line("def g(self):\n      x = 1\n        return 2") == 2


def test_the_line_of_the_first_error_is_counted_from_the_middle():
    crop = crop_of("def f():\n    ", "\n", ("pass",))
    assert crop is not None
    assert crop.error_line("x = 1\n    y = 2") is None
    assert crop.error_line("x = 1\n      y = 2\n    z = 3") == 1
    assert crop.error_line(")") == 0


@pytest.mark.parametrize(
    "text",
    [
        "\0",
        "\ud800",
        "(" * 3000,
        "x" + ".x" * 50_000,
        "-" * 100_000 + "x",
        "9" * 10_000,
        "\N{BYTE ORDER MARK}",
    ],
)
def test_text_that_no_compiler_likes_is_an_error_and_no_crash(text):
    crop = crop_of("x = 1\n", "\n", ("pass",))
    assert crop is not None
    crop.error_line(text)


def test_where_no_filler_compiles_nothing_is_said():
    assert crop_of("def f(:\n    ", "\n", ("pass", "")) is None
    assert crop_of("if a:\n    print 'a'\n    b = ", "\n", ("", "x")) is None


def test_an_escape_sequence_that_python_does_not_know_is_no_error():
    crop = crop_of("x = '\\d'\n", "\n", ("pass",))
    assert crop is not None
    assert crop.error_line("y = '\\w'") is None


def test_a_long_string_in_which_the_read_text_would_begin_is_no_obstacle():
    words = "id_* credentials* secret passwords.*\n" * 300
    prefix = f'import os\n\nNAMES = """\n{words}"""\nMORE = 1\n\n'
    crop = crop_of(prefix, "\n\ndef f():\n    return 1\n", ("pass", ""))
    assert crop is not None
    assert crop.error_line('"""A string without an end.') == 0
