"""The speculation benchmark: its statistics, spans and tables, and a small run."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import speculation
from bench.arms import Answer, Fleet, Skipped, Spec, first_difference, row_of
from bench.intervals import bootstrap, geometric_mean_ratio, mean_difference, median, ratio_of_rates
from bench.llama import _answer, find_llama
from bench.spans import PACKAGES, Span, cut_spans, read_folder
from bench.tables import SCHEMA, best_assisted, best_ours, faster, read_cells, report
from fimserver.cards import MODELS, PACKAGE, get_card
from fimserver.engine.prompts.vocabulary import Vocabulary, read_tokenizer
from fimserver.types import Request, Sampling


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    card = get_card("nano")
    return Vocabulary(read_tokenizer(MODELS / "nano", card), card)


@pytest.mark.parametrize("values", [[3.0], [4.0, 1.0], [5.0, 1.0, 3.0], [2.0, 9.0, 4.0, 4.0]])
def test_median_is_the_median(values: list[float]) -> None:
    assert float(median(torch.tensor(values))) == statistics.median(values)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    normal = torch.randn(200, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = [bootstrap(mean_difference, row.tolist(), [0.0] * 60, turns=400) for row in normal]
    assert 0.88 <= statistics.fmean(interval.low <= 0 <= interval.high for interval in found) <= 0.99


def test_an_interval_is_the_same_when_asked_again_and_holds_its_value() -> None:
    of, by = [2.0, 3.0, 8.0, 2.5], [1.0, 1.0, 2.0, 2.0]
    once, again = bootstrap(geometric_mean_ratio, of, by), bootstrap(geometric_mean_ratio, of, by)
    assert once == again
    assert once.low < once.value < once.high
    assert once.value * bootstrap(geometric_mean_ratio, by, of).value == pytest.approx(1)


def test_a_constant_ratio_has_no_interval() -> None:
    tokens = [4.0, 8.0, 100.0]
    assert bootstrap(ratio_of_rates, [2 * t for t in tokens], tokens, tokens, tokens) == pytest.approx(
        (2, 2, 2)
    )


@pytest.mark.parametrize("columns", [([], []), ([1.0], [1.0, 2.0])])
def test_columns_that_cannot_be_paired_are_refused(columns: tuple[list[float], list[float]]) -> None:
    with pytest.raises(ValueError, match="paired"):
        bootstrap(mean_difference, *columns)


def test_spans_are_a_third_each_of_files_of_their_own_and_the_same_again(vocabulary: Vocabulary) -> None:
    packages = read_folder(PACKAGE)
    spans = cut_spans(packages, 12, 3, vocabulary, lambda _kind, request: request)
    assert spans == cut_spans(packages, 12, 3, vocabulary, lambda _kind, request: request)
    assert spans != cut_spans(packages, 12, 4, vocabulary, lambda _kind, request: request)
    assert sorted(span.kind for span in spans) == ["body"] * 4 + ["multi"] * 4 + ["single"] * 4
    assert len({span.name.rsplit("/", 2)[0] for span in spans}) == 12
    texts = [text for files in packages.values() for text in files.values()]
    for span in spans:
        assert any(span.request.prefix in text and span.request.suffix in text for text in texts)


def test_spans_repeat_a_file_only_when_there_are_no_more(vocabulary: Vocabulary) -> None:
    text = (PACKAGE / "cards.py").read_text("utf-8")
    spans = cut_spans({"one": {"cards.py": text}}, 6, 0, vocabulary, lambda _kind, request: request)
    assert len({span.name for span in spans}) == 6


def test_no_evaluation_package_was_trained_on() -> None:
    lists = ("nano/SOURCES.md", "adapters/SOURCES.md", "training/packages.txt", "training/npm.txt")
    trained = "\n".join((MODELS / name).read_text("utf-8") for name in lists)
    names = {line.strip("| ").split(" ")[0].split("==")[0] for line in trained.splitlines()}
    assert len(names) > 50
    assert names.isdisjoint(PACKAGES)


def test_names_of_arms() -> None:
    spec = Spec.of("diffusion:self/K2T1")
    assert (spec.name, spec.knobs) == ("diffusion:self", {"K": 2, "T": 1})
    with pytest.raises(Skipped, match="no arm"):
        Spec.of("ngram/two")


@pytest.mark.parametrize(
    ("left", "right", "place"),
    [([1, 2], [1, 2], None), ([1, 2], [1, 3], 1), ([1], [1, 2], 1), ([], [], None)],
)
def test_first_difference(left: list[int], right: list[int], place: int | None) -> None:
    assert first_difference(left, right) == place


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    return Fleet()


def test_a_row_ends_with_the_stop_or_at_the_limit(fleet: Fleet) -> None:
    arm = fleet.arm(Spec.of("none"))
    line, stop = fleet.loaded.vocabulary.encode("\nx = 1\n"), min(fleet.stops)
    answer = Answer([(5.0, line[:2]), (6.0, [*line[2:], stop, 9, 9])], 7.0, passes=1, rounds=1, drafted=9)
    row, ids = row_of(
        arm, Span("s", "multi", Request("", "", sampling=Sampling(max_tokens=50))), [1, 2], answer, fleet
    )
    assert ids == [*line, stop]
    assert (row.tokens, row.first_tokens, row.accepted) == (len(line) + 1, 2, len(line) - 1)
    assert (row.ttft_ms, row.line_ms, row.last_ms, row.total_ms) == (5.0, 6.0, 6.0, 7.0)
    row, ids = row_of(
        arm, Span("s", "multi", Request("", "", sampling=Sampling(max_tokens=3))), [1, 2], answer, fleet
    )
    assert ids == line[:3]


def test_a_cold_request_says_the_same_again(fleet: Fleet) -> None:
    arm, span = (
        fleet.arm(Spec.of("none")),
        Span(
            "s",
            "single",
            Request("def add(a, b):\n    return ", "\n", sampling=Sampling(max_tokens=6, stop="none")),
        ),
    )
    first, again = arm.answer(span, []), arm.answer(span, [])
    assert [ids for _, ids in first.said] == [ids for _, ids in again.said]
    assert first.passes == first.rounds == len(first.said) - 1


def test_two_arms_on_two_spans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.json"
    limits = [word for kind in ("single", "multi", "body") for word in (f"--tokens-{kind}", "8")]
    arms = ["--arms", "none,transformers+lookup/K4N2,nobody"]
    words = [
        "--source",
        str(PACKAGE / "host"),
        "--spans",
        "2",
        "--warmup",
        "1",
        *arms,
        *limits,
        "--out",
        str(out),
    ]
    assert speculation.main(words) == 0
    printed = capsys.readouterr().out
    document = json.loads(out.read_text())
    assert [row["arm"] for row in document["rows"][:3]] == ["none", "transformers+lookup/K4N2", "none"]
    assert len(document["rows"]) == 4
    assert "nobody" in document["skipped"]
    assert speculation.main(["--report", str(out)]) == 0
    assert capsys.readouterr().out == printed


def row(arm: str, span: str, total_ms: float, **changes: Any) -> dict[str, Any]:
    known = {
        "kind": "multi",
        "limit": 64,
        "tokens": 11,
        "first_tokens": 1,
        "ttft_ms": 10.0,
        "line_ms": 12.0,
        "last_ms": total_ms,
    }
    counted = {"passes": 10, "rounds": 10, "drafted": 0, "accepted": 0, "differs_at": None}
    return {"arm": arm, "span": span, "total_ms": total_ms} | known | counted | changes


def document(*rows: dict[str, Any]) -> dict[str, Any]:
    run = {"spans": 2, "seed": 0, "packages": ["p"], "limits": {}, "temperature": 0.0}
    arms: dict[str, Any] = {r["arm"]: {} for r in rows}
    return {"schema": SCHEMA, "machine": {}, "run": run, "arms": arms, "skipped": {}, "rows": list(rows)}


def test_tables_compare_span_by_span() -> None:
    cells, _ = read_cells(
        [
            document(row("none", "a", 100.0), row("ngram", "a", 50.0), row("transformers+model", "a", 90.0)),
            document(row("none", "b", 40.0), row("ngram", "b", 20.0), row("transformers+lookup", "b", 30.0)),
        ]
    )
    for whole in faster(cells["ngram"], cells["none"], "whole call"):
        assert whole == pytest.approx((2, 2, 2))
    after = faster(cells["ngram"], cells["none"], "after the first token")[1]
    assert after
    assert after.value == pytest.approx(120 / 50)
    assert (best_ours(cells), best_assisted(cells)) == ("ngram", "transformers+lookup")


def test_repeats_of_a_span_count_once() -> None:
    cells, _ = read_cells([document(row("none", "a", ms)) for ms in (1.0, 9.0, 2.0)])
    assert cells["none"]["a"]["total_ms"] == 2.0


def test_the_report_says_whether_goals_are_met_and_who_disagrees() -> None:
    said = document(
        row("none", "a", 100.0),
        row("ngram", "a", 40.0),
        row("mix/K2", "a", 45.0, rounds=5),
        row("mix", "a", 45.0, differs_at=3),
        row("transformers+lookup", "a", 60.0, differs_at=1),
    )
    text = report([said])
    assert "the goal is 2.0x: met" in text
    assert "the goal is 1.75x: NOT met" in text
    assert "1.000 [1.000, 1.000]" in text  # two drafts gave one token a pass more
    assert speculation.strangers(said) == ["mix"]


def test_files_of_another_schema_are_refused() -> None:
    with pytest.raises(ValueError, match="schema"):
        report([document() | {"schema": 0}])


def test_llama_is_left_out_where_it_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Skipped, match="llama-server"):
        find_llama()


def test_the_end_that_llama_may_not_send(fleet: Fleet) -> None:
    stop = min(fleet.stops)
    end = {"tokens": [], "stop": True, "stop_type": "eos", "timings": {"draft_n": 3, "draft_n_accepted": 1}}
    events: list[tuple[float, dict[str, Any]]] = [
        (3.0, {"tokens": [7]}),
        (4.0, {"tokens": [8, 9]}),
        (5.0, end),
    ]
    answer = _answer(events, 6.0, fleet)
    assert answer.said == [(3.0, [7]), (4.0, [8, 9]), (5.0, [stop])]
    assert (answer.passes, answer.drafted) == (2, 3)
    assert _answer([*events[:2], (4.5, {"tokens": [stop]}), events[2]], 6.0, fleet).said[-1] == (4.5, [stop])
