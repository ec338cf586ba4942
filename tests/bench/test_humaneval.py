"""The evaluation on HumanEval: spans of a solution, and tests that are run with limits."""

from __future__ import annotations

import pytest

from bench.humaneval import Problem, cut, passes, report, spans_of

PROBLEM = Problem(
    "HumanEval/7",
    'def double(x):\n    """Twice x."""\n',
    "double",
    "    y = 2 * x\n\n    return y\n",
    "def check(candidate):\n    assert candidate(2) == 4\n",
)
SINGLE = list(spans_of(PROBLEM, "single-line"))


def test_each_line_that_is_not_blank_is_a_span():
    assert [(span.id, span.middle) for span in SINGLE] == [
        ("HumanEval/7/single-line/L0", "    y = 2 * x"),
        ("HumanEval/7/single-line/L2", "    return y"),
    ]


def test_each_run_of_lines_is_a_span():
    spans = list(spans_of(PROBLEM, "multi-line"))
    assert [span.id.rsplit("/", 1)[1] for span in spans] == ["L0_L0", "L0_L2", "L2_L2"]
    assert spans[1].middle == "    y = 2 * x\n\n    return y"


def test_a_span_is_the_whole_program():
    for kind in ("single-line", "multi-line"):
        for span in spans_of(PROBLEM, kind):
            whole = span.prefix + span.middle + span.suffix
            assert whole == PROBLEM.prompt + PROBLEM.canonical_solution


def test_a_sample_is_the_same_again():
    problems = {PROBLEM.task_id: PROBLEM}
    assert cut(problems, {"single-line": 1, "multi-line": 9}, 3) == cut(
        problems, {"single-line": 1, "multi-line": 9}, 3
    )
    assert [span.kind for span in cut(problems, {"single-line": 1, "multi-line": 9}, 3)] == [
        "single-line"
    ] + ["multi-line"] * 3


@pytest.mark.parametrize("span", SINGLE, ids=lambda span: span.id)
def test_the_true_middle_passes(span):
    assert passes(PROBLEM, span, span.middle, 60.0)


@pytest.mark.parametrize(
    "middle",
    [
        "    y = 3 * x",
        "    y = = x",
        "",
        "    import sys; sys.exit(0)",
        "    import os; os._exit(0)",
        "    import socket; socket.socket(); y = 2 * x",
        "    import subprocess; subprocess.run(['true']); y = 2 * x",
        "    import os; os.system('true'); y = 2 * x",
        "    open('file', 'w').write('x'); y = 2 * x",
        "    y = 2 * x; z = bytearray(1 << 33)",
        "    y = '\ud800'",
    ],
)
def test_what_is_wrong_or_reaches_out_does_not_pass(middle: str):
    assert not passes(PROBLEM, SINGLE[0], middle, 60.0)


def test_a_program_without_end_is_ended():
    assert not passes(PROBLEM, SINGLE[0], "    while True: pass", 1.0)


def test_shares_are_of_the_spans_that_were_filled(capsys: pytest.CaptureFixture[str]):
    files = {"right": {SINGLE[0].id: SINGLE[0].middle}, "wrong": {SINGLE[1].id: "    return 0"}}
    report({PROBLEM.task_id: PROBLEM}, SINGLE, files)
    printed = capsys.readouterr().out
    assert "| single-line (1) | right | 100.0% [100.0, 100.0] | 100.0% [100.0, 100.0] |" in printed
    assert "| single-line (1) | wrong | 0.0% [0.0, 0.0] | 0.0% [0.0, 0.0] |" in printed
