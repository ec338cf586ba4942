"""The benchmark of the rules that end a middle: its holes, its recordings, its scores."""

from __future__ import annotations

import ast

from bench.endings import KINDS, Recording, holes, record, report, score, tokens_per_pass
from fimserver.cards import PACKAGE
from fimserver.stopping.rules import RULES

FILES = {"code": {"diffusion.py": (PACKAGE / "engine" / "diffusion.py").read_text("utf-8")}}


def test_holes_are_cut_from_files_that_stay_whole():
    found = list(holes(FILES, 12, 1))
    assert [kind for kind, *_ in found] == [*KINDS] * 3
    for _, _, request, middle in found:
        assert request.prefix + middle + request.suffix in FILES["code"]["diffusion.py"]
        assert middle.strip()
    assert all("\n" not in middle for kind, _, _, middle in found if kind in {"line", "rest of line"})
    assert all(
        ast.parse("if x:\n    " + middle)
        for kind, _, _, middle in found
        if kind == "line" and "return" not in middle
    )


def test_a_recorded_middle_is_scored_by_each_set_of_rules():
    texts = ("a", "a(b)", "a(b)\n", "a(b)\n    c", "a(b)\n    c = 1\nd")
    recording = Recording("line", "a.py", "def f():\n    ", "\n    c = 1\n", "a(b)", texts, ended=False)
    free, ruled = score(recording, None), score(recording, RULES)
    assert (free.exact, free.tokens, free.reason) == (False, 5, "length")
    assert (ruled.exact, ruled.tokens, ruled.first_line, ruled.kept_chars, ruled.extra_chars) == (
        True,
        5,
        True,
        4,
        0,
    )
    assert ruled.reason in {"suffix", "scope"}


def test_nano_writes_and_the_table_counts(nano, capsys):
    engine = nano.engine("ar")
    recordings = [record(engine, *hole) for hole in holes(FILES, 4, 2)]
    assert all(0 < each.passes <= len(each.texts) + each.ended for each in recordings)
    report(recordings)
    table = capsys.readouterr().out
    assert "| all (4) | all rules |" in table
    assert "all " in tokens_per_pass(recordings)
