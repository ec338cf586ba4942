"""Post-processing of a model's text. The cases are data: tests/cases/postprocess, one file for each language."""

import tomllib
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fimserver.front.postprocess.indentation import indentation
from fimserver.front.postprocess.pipeline import (
    FILTERS,
    Candidate,
    Dropped,
    FilterContext,
    distinct,
    fit,
    postprocess,
)
from fimserver.front.postprocess.repetition import within
from fimserver.front.syntax.languages import GRAMMARS
from fimserver.front.syntax.parser import breaks_syntax
from fimserver.reasons import Reason
from fimserver.stopping.around import loops

FOLDER = Path(__file__).parents[2] / "cases" / "postprocess"
CASES = [
    pytest.param(path.stem, case, id=f"{path.stem}: {case['name']}")
    for path in sorted(FOLDER.glob("*.toml"))
    for case in tomllib.loads(path.read_text("utf-8"))["case"]
]
CUT_SHORT = (Reason.DEADLINE, Reason.LENGTH)


def around_of(language, case):
    prefix, suffix = case["code"].split("█")
    return FilterContext(
        prefix,
        suffix,
        language=language if language in GRAMMARS else None,
        indent_unit=case.get("unit", "    "),
        reason=Reason(case.get("why", "end")),
        single_line=case.get("single_line", False),
        special=tuple(case.get("special", ())),
        rejected=frozenset(case.get("rejected", ())),
        is_cell=case.get("is_cell", False),
    )


def check(language, case):
    """The text and the replaced characters, or the reason, are those of the case; and what is shown would pass again."""
    around = around_of(language, case)
    result = postprocess(case["middle"], around)
    if "reason" in case:
        assert isinstance(result, Dropped), result
        assert result.reason == case["reason"]
        assert result.by in FILTERS
    else:
        assert result == Candidate(case["shown"], case.get("replace", 0))
        if around.reason not in CUT_SHORT:
            assert postprocess(result.text, around) == result


@pytest.mark.parametrize(("language", "case"), CASES)
def test_golden_cases(language, case):
    check(language, case)


def test_there_are_cases_for_every_filter_that_drops():
    seen = {case.values[1]["reason"] for case in CASES if "reason" in case.values[1]}
    assert seen >= {
        "control",
        "unfinished",
        "cut_off",
        "duplicate",
        "repetition",
        "syntax",
        "no_op",
        "blank",
        "rejected",
    }
    assert len(CASES) >= 60
    assert len({case.values[0] for case in CASES}) >= 6


PIECES = [
    "a",
    "foo",
    "return x",
    "if a:",
    "x = 1",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ":",
    ";",
    '"',
    "'",
    " ",
    "    ",
    "\t",
    "\n",
    "\n    ",
    ",",
    "#",
]
CODE = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)
DIRTY = st.lists(
    st.sampled_from([*PIECES, "\x00", "\x1b", "\u202e", "\ufffd", "\r\n", "\u2028", "<eos>"]), max_size=14
).map("".join)
AROUND = st.builds(
    FilterContext,
    prefix=CODE,
    suffix=CODE,
    language=st.sampled_from([None, "python", "javascript", "ruby"]),
    indent_unit=st.sampled_from(["    ", "\t", "  "]),
    reason=st.sampled_from([Reason.END, Reason.LINE, Reason.BLOCK, Reason.DEADLINE, Reason.LENGTH]),
    single_line=st.booleans(),
    special=st.just(("<eos>",)),
)  # fmt: skip


@given(DIRTY, AROUND)
def test_what_is_shown_can_be_shown(text, around):
    result = postprocess(text, around)
    if isinstance(result, Dropped):
        return
    assert result.text.strip()
    assert "<eos>" not in result.text
    assert not [
        char
        for char in result.text
        if unicodedata.category(char) in {"Cc", "Cf", "Zl", "Zp", "Cs"} and char not in "\n\t"
    ]
    assert "\ufffd" not in result.text
    assert 0 <= result.replace <= len(around.suffix.split("\n")[0])
    assert result.text != around.suffix[: result.replace]
    if around.single_line:
        assert "\n" not in result.text.lstrip()
    blanks = str.maketrans("", "", " \t")
    assert len(result.text.translate(blanks)) <= len(text.translate(blanks))


@given(DIRTY, AROUND)
def test_what_is_shown_would_be_shown_unchanged(text, around):
    result = postprocess(text, around)
    if isinstance(result, Candidate):
        finished = FilterContext(
            **{**vars(around), "reason": Reason.END if around.reason in CUT_SHORT else around.reason}
        )
        assert postprocess(result.text, finished) == result


@given(CODE, AROUND)
def test_what_the_user_gets_holds_what_is_replaced(text, around):
    """The replaced characters come again in the text, in order; so ``prefix + text + suffix[replace:]`` loses nothing."""
    result = postprocess(text, around)
    if isinstance(result, Candidate):
        gone = iter(result.text)
        assert all(char in gone for char in around.suffix[: result.replace] if not char.isspace())


@given(CODE, AROUND)
def test_what_is_shown_breaks_nothing(text, around):
    result = postprocess(text, around)
    if isinstance(result, Candidate) and not around.single_line and around.reason != Reason.LINE:
        assert not breaks_syntax(around.language, around.prefix, result.text, around.suffix, result.replace)


def test_the_filter_that_dropped_is_named():
    assert postprocess("a)", FilterContext("x = f(", "\n", language="python")) == Candidate("a)")
    assert postprocess("a)", FilterContext("x = ", "\n", language="python")) == Dropped(
        Reason.SYNTAX, "syntax_gate"
    )


@pytest.mark.parametrize(
    ("unit", "text", "converted"),
    [
        ("    ", "a\n\tb\n\t\tc", "a\n    b\n        c"),
        ("  ", "a\n\tb", "a\n  b"),
        ("\t", "a\n    b\n        c", "a\n\tb\n\t\tc"),
        ("\t", "a\n  b\n    c", "a\n\tb\n\t\tc"),
        ("\t", "a\n   b", "a\n   b"),
        ("    ", "a\n  b", "a\n  b"),
        ("    ", "a\n\t  b", "a\n      b"),
    ],
)
def test_only_the_unit_of_indentation_changes(unit, text, converted):
    assert indentation(Candidate(text), FilterContext("x = ", "", indent_unit=unit)) == Candidate(converted)


@pytest.mark.parametrize(
    ("tokens", "loop"),
    [
        ("a " * 10, True),
        ("a " * 9, False),
        ("a b c " * 10, True),
        ("a b c " * 9, False),
        ("x " + "a b c d e f g h i j k " * 5, True),
    ],
)
def test_loops_of_tokens(tokens, loop):
    assert loops(tokens.split()) == loop


@given(st.text("ab", max_size=12), st.text("ab", max_size=12), st.integers(0, 4))
def test_banded_edit_distance_is_the_edit_distance(a, b, limit):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        old, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(old[j] + 1, row[-1] + 1, old[j - 1] + (x != y)))
    assert within(a, b, limit) == (row[-1] <= limit)


def test_candidates_equal_up_to_blanks_are_one():
    drafts = [Candidate("a = 1"), Candidate("b"), Candidate("a  =\n1", 1), Candidate("c")]
    assert distinct(drafts) == [Candidate("a = 1"), Candidate("b"), Candidate("c")]
    assert distinct([]) == []


@pytest.mark.parametrize(
    ("text", "left", "right", "replaced"),
    [
        ("a)", "f(", ")", 1),
        ("a)", "f(", "", 0),
        ("g(a)", "f(", ")", 0),
        ("g(a))", "f(", ")", 1),
        ("a, b):", "def f(", ")", 1),
        ("a, b) -> int:", "def f(", "):", 2),
        ("hello", 'x = "', '"', 0),
        ('hello"', 'x = "', '"', 1),
        ('a" + b + "c', 'x = "', '"', 0),
        ("t", "s = te", "t", 0),  # of a word that goes on
        ("b, c", "f(a, ", "c, d)", 1),
        ("b, c", "f(a, ", "cd)", 0),
        ("= 1;\nfoo();", "let a ", "= 1;", 4),
    ],
)
def test_what_the_text_has_itself_is_replaced(text, left, right, replaced):
    assert fit(text, left, right) == Candidate(text, replaced)


def test_a_toy_filter_from_outside_takes_part(monkeypatch):
    def no_todo(candidate, _):
        return Reason.REJECTED if "TODO" in candidate.text else candidate

    monkeypatch.setitem(FILTERS, "no_todo", no_todo)
    around = FilterContext("x = ", "\n", language="python")
    assert postprocess("1  # TODO", around) == Dropped(Reason.REJECTED, "no_todo")
    assert postprocess("1", around) == Candidate("1")
