"""Suggestions in Python files: a file that compiled still does, for any text of a model."""

import re
import warnings
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fimserver.front.postprocess.filters import scope
from fimserver.front.postprocess.pipeline import Candidate, FilterContext, postprocess
from fimserver.front.syntax.features import indent_unit
from fimserver.stopping.around import Around
from fimserver.stopping.rules import Endings

ROOT = Path(__file__).parents[3] / "fimserver" / "front"
FILES = [path.read_text("utf-8") for path in sorted(ROOT.rglob("*.py")) if path.stat().st_size > 1000]
FILES += [text.replace("    ", "\t") for text in FILES[:10]]
FILES += [text.replace("    ", "  ") for text in FILES[10:20]]


def compiles(text):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(text, "file", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    return True


def blanks_of(line):
    return line[: len(line) - len(line.lstrip())]


@st.composite
def cursors(draw):
    """A file with a hole, and what was in it: (prefix, middle, suffix). At an indented line, or anywhere in one."""
    lines = draw(st.sampled_from(FILES)).split("\n")
    row = draw(st.integers(0, len(lines) - 1))
    removed = draw(st.integers(0, 4))
    anywhere = draw(st.booleans())
    column = draw(st.integers(0, len(lines[row]))) if anywhere else len(blanks_of(lines[row]))
    last = lines[row : row + removed] or [lines[row]]
    middle = "\n".join([last[0][column:], *last[1:]])
    prefix = "\n".join([*lines[:row], lines[row][:column]])
    rest = (
        [lines[row][column:], *lines[row + 1 :]]
        if anywhere and not removed
        else ["", *lines[row + removed :]]
    )
    return prefix, middle, "\n".join(rest)


@st.composite
def texts(draw, middle, prefix, suffix):
    """What a model writes: the middle, other code, the same lines again, all of it with odd indentation."""
    other = draw(st.sampled_from(FILES)).split("\n")
    start, count = draw(st.integers(0, len(other) - 1)), draw(st.integers(1, 6))
    lines = other[start : start + count]
    blanks = st.text(" \t", max_size=9)
    kinds = {
        "middle": lambda: middle,
        "indented again": lambda: blanks_of(prefix.rsplit("\n", 1)[-1]) + middle,
        "one blank": lambda: " " + middle,
        "elsewhere": lambda: "\n".join(lines),
        "flush": lambda: "\n".join(line.strip() for line in lines),
        "random indentation": lambda: "\n".join(draw(blanks) + line.strip() for line in lines),
        "tabs": lambda: "\n".join(re.sub("    |  ", "\t", line) for line in lines),
        "runs on": lambda: middle + suffix[: draw(st.integers(0, 300))],
        "next lines": lambda: suffix[: draw(st.integers(0, 300))].lstrip("\n"),
        "rest of the line": lambda: (
            middle + suffix.split("\n", 1)[0] + draw(st.sampled_from(["", "\n", " "]))
        ),
        "cut": lambda: "\n".join(other)[start * 7 :][: draw(st.integers(0, 120))],
    }
    return kinds[draw(st.sampled_from(sorted(kinds)))]()


@st.composite
def cases(draw):
    prefix, middle, suffix = draw(cursors())
    return prefix, draw(texts(middle, prefix, suffix)), suffix


def shown_for(prefix, text, suffix):
    unit = indent_unit((prefix + suffix).split("\n"), default="")
    context = FilterContext(prefix[-20_000:], suffix[:20_000], language="python", indent_unit=unit)
    result = postprocess(text, context) if text.strip() else None
    return result if isinstance(result, Candidate) else None


def is_header(text):
    *decorators, header = text.strip().split("\n")
    return all(line.strip().startswith("@") for line in decorators) and re.search(r":\s*(#.*)?$", header)


@given(cases())
def test_a_file_that_compiles_still_does(case):
    prefix, text, suffix = case
    result = shown_for(prefix, text, suffix)
    if result is not None and any(compiles(prefix + filler + suffix) for filler in ("", "pass", "x")):
        assert compiles(prefix + result.text + suffix[result.replace :]) or is_header(result.text)


@given(cases())
def test_the_rest_of_the_line_is_there_once(case):
    prefix, text, suffix = case
    rest = suffix.split("\n", 1)[0]
    result = shown_for(prefix, text, suffix)
    if result is not None and len(rest.strip()) > 3 and result.text.rstrip().endswith(rest.strip()):
        opened = result.text.rstrip()[: -len(rest.strip())]
        assert result.replace >= len(rest.rstrip()) or re.search(r"[(\[{\"']", opened)


@given(cases())
def test_tabs_stay_tabs_and_spaces_stay_spaces(case):
    prefix, text, suffix = case
    left = prefix.rsplit("\n", 1)[-1]
    result = shown_for(prefix, text, suffix)
    if result is not None and left and not left.strip():
        other = " " if "\t" in left else "\t"
        more = [blanks_of(line) for line in result.text.split("\n")[1:] if line.strip()]
        assert not any(blanks.startswith(other) for blanks in more)


@given(cases())
def test_what_the_rule_of_the_host_lets_run_is_not_cut_as_out_of_scope(case):
    prefix, text, suffix = case
    if (
        text.strip()
        and Endings(Around(prefix, suffix, "python"), "none", frozenset({"scope"})).end(text + "\n") is None
    ):
        assert scope(Candidate(text), FilterContext(prefix, suffix, language="python")) == Candidate(text)
