"""Contents of the page of a comparison, for any report."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from fimserver.ab.analysis.analysis import Analysis, analyse
from fimserver.ab.report.page import stratum, worst, write_page
from fimserver.ab.report.visible import visible
from fimserver.ab.schema import Arm, Report
from tests.ab.sample import make_report

HOSTILE = "</script></pre><img src=x onerror=alert(1)>\u202e<!--\"'&{{ 7 * 7 }}"
VOID = {"meta", "link", "img", "input", "br", "path", "use", "rect"}


class Outline(HTMLParser):
    """The tags of a page with their attributes, its ids and its text; complains of tags that do not match."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def named(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


def page_of(folder, report: Report, analysis: Analysis | None = None) -> str:
    path = folder / "report.html"
    write_page(report, analysis or analyse(report), path)
    return path.read_text("utf-8")


@pytest.fixture(scope="module")
def report():
    return make_report(300)


@pytest.fixture(scope="module")
def page(report, tmp_path_factory):
    return page_of(tmp_path_factory.mktemp("page"), report)


def test_it_has_a_picture_of_each_kind_with_a_title(page):
    charts = Outline(page).named("svg")
    names = {attrs["aria-labelledby"].removesuffix("-title") for attrs in charts}
    assert {"ecdf", "scatter", "value", "timeline", "answer_ms_ratio", "exact", "chars_per_s_300"} == names
    assert all(attrs["role"] == "img" and attrs["viewbox"] for attrs in charts)


def test_ids_are_unique_and_every_reference_has_one(page):
    ids = [attrs["id"] for _, attrs in Outline(page).tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:href="#|url\(#|aria-labelledby=")([^")]+)', page)
    assert used
    assert set(used) <= set(ids)


def test_it_loads_nothing(page):
    outline = Outline(page)
    loads = [
        attrs.get(name)
        for tag, attrs in outline.tags
        for name in ("src", "href")
        if tag != "use" and name in attrs
    ]
    assert loads == ["data:,"]
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) == {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "@import" not in page
    policy = next(attrs["content"] for attrs in outline.named("meta") if "http-equiv" in attrs)
    assert policy.startswith("default-src 'none';")


def test_pictures_take_the_colours_of_the_page(page):
    drawn = re.sub(r"(?s)<style>.*?</style>", "", page)
    assert {"var(--ink)", "var(--grid)", "var(--a)", "var(--b)"} == set(re.findall(r"var\(--\w+\)", drawn))
    assert not re.findall(r"(?:fill|stroke): #", drawn)


def test_it_is_small(page):
    assert len(page.encode()) < 1_000_000


def test_it_says_what_was_found_and_how(page, report):
    text = Outline(page).text
    for sentence in analyse(report).headline:
        assert sentence in text
    for said in (
        report.command,
        "dllm",
        "ar,drafter=none",
        "made-up",
        "none: synthetic numbers",
        "too large",
    ):
        assert said in text


def test_the_same_report_gives_the_same_bytes(tmp_path):
    report = make_report(30)
    assert page_of(tmp_path, report) == page_of(tmp_path, report)


def test_text_of_rows_is_text(tmp_path):
    made = make_report(8, traces=0)
    names = ("item", "group", "kind", "language", "before", "after", "gold")
    rows = []
    for number, row in enumerate(made.rows):
        sides = {
            side: getattr(row, side).model_copy(update={"text": HOSTILE, "why": HOSTILE})
            for side in ("a", "b")
        }
        rows.append(row.model_copy(update=dict.fromkeys(names, f"{HOSTILE}{number}") | sides))
    check_harmless(page_of(tmp_path, made.model_copy(update={"rows": tuple(rows)})))


def test_text_around_the_rows_is_text(tmp_path):
    said = {
        "command": HOSTILE,
        "notes": (HOSTILE,),
        "source": {HOSTILE: HOSTILE, "name": HOSTILE},
        "environment": {HOSTILE: [HOSTILE]},
        "arms": {side: Arm(spec=f"$x^2$ {HOSTILE}", models={"ar": HOSTILE}) for side in ("a", "b")},
    }
    check_harmless(page_of(tmp_path, make_report(8).model_copy(update=said)))


def check_harmless(page: str) -> None:
    outline = Outline(page)
    assert outline.named("img") == []
    assert len(outline.named("script")) == 1
    assert not [attrs for _, attrs in outline.tags for name in attrs if name.startswith("on")]
    assert "{{ 7 * 7 }}" in outline.text
    assert "onerror=alert(1)" in outline.text


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_rows_make_a_page(count, tmp_path):
    text = Outline(page_of(tmp_path, make_report(count, traces=0))).text
    assert ("nothing to compare" in text) == (count == 0)
    assert "How it was measured" in text


@pytest.mark.parametrize(
    "change",
    [
        {"answer_ms": 0.0, "first_ms": 0.0, "text": "", "reason": "empty", "shown": False},
        {"answer_ms": 0.0, "first_ms": 0.0, "text": "", "reason": "failed", "predicted_ms": {}},
        {"text": "größe = '日本語 🎉 \u200d\u202e'\r\n\t", "prefix_chars": 3},
        {"prefix_chars": 10_000, "parses": None, "answer_ms": 123.0, "first_ms": 123.0},
    ],
)
def test_results_of_every_sort_make_a_page(change, tmp_path):
    made = make_report(12, traces=0)
    rows = tuple(row.model_copy(update={"b": row.b.model_copy(update=change)}) for row in made.rows)
    assert Outline(page_of(tmp_path, made.model_copy(update={"rows": rows}))).named("table")


@pytest.mark.parametrize("missing", [None, float("nan"), float("inf")])
def test_numbers_that_are_none_leave_their_place_empty(missing, tmp_path):
    report = make_report(12)
    found = analyse(report)
    gone = dict.fromkeys(("a", "b", "value", "low", "high", "p", "p_holm"), missing)
    page = page_of(
        tmp_path,
        report,
        replace(found, comparisons=tuple(replace(each, **gone) for each in found.comparisons)),
    )
    text = Outline(page).text.lower()
    assert not re.findall(r"\bnan\b|\binf\b|\bnone [x\]]|\[none", text)


def test_times_that_are_none_make_a_page(tmp_path):
    made = make_report(12, traces=0)
    found = analyse(made)
    gone = {
        "answer_ms": float("nan"),
        "first_ms": float("nan"),
        "saved_keys": float("nan"),
        "predicted_ms": {},
    }
    rows = tuple(row.model_copy(update={"a": row.a.model_copy(update=gone)}) for row in made.rows)
    text = Outline(page_of(tmp_path, made.model_copy(update={"rows": rows}), found)).text
    assert not re.findall(r"\bnan\b", text)


def test_rows_beyond_the_limit_are_summed_up(tmp_path):
    made = make_report(20)
    many = tuple(
        row.model_copy(update={"item": f"{row.item}-{turn}"}) for turn in range(30) for row in made.rows
    )
    page = page_of(tmp_path, made.model_copy(update={"rows": many}), analyse(made))
    outline = Outline(page)
    assert "The first 500 items; 100 more are in report.json" in outline.text
    assert page.count("-29</td>") == 0


def test_the_worst_pairs_come_first_and_none_twice():
    rows = make_report(50).rows
    found = worst(rows, 20)
    assert len({row.item for row in found}) == 20
    assert abs(found[0].a.saved_keys - found[0].b.saved_keys) == max(
        abs(row.a.saved_keys - row.b.saved_keys) for row in rows
    )
    slowest = max(
        rows, key=lambda row: max(row.a.answer_ms / row.b.answer_ms, row.b.answer_ms / row.a.answer_ms)
    )
    assert slowest in found[:2]


def test_pairs_that_do_not_differ_are_not_shown():
    rows = [row.model_copy(update={"b": row.a}) for row in make_report(5).rows]
    assert worst(rows) == []


@pytest.mark.parametrize(
    ("text", "right", "wanted"),
    [
        ("", None, "<i>(nothing)</i>"),
        ("a b", None, "a b"),
        ("a  ", None, "a<i>··</i>"),
        ("a \nb", None, "a<i>·</i><i>⏎</i>\nb"),
        ("a\r\nb", None, "a<i>⏎</i>\nb"),
        ("\tx", None, "<i>→</i>\tx"),
        ("a = b", 4, 'a = <span class="off">b</span>'),
        ("<b>&", 0, '<span class="off">&lt;b&gt;&amp;</span>'),
        ("\x00\u202e\ud800", None, "<i>\\u{0}</i><i>\\u{202e}</i><i>\\u{d800}</i>"),
        ("👩\u200d💻", None, "👩\u200d💻"),
    ],
)
def test_white_space_and_control_characters_are_seen(text, right, wanted):
    assert visible(text, right) == wanted


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("all", "all items"),
        ("warm", "warm caches"),
        ("bucket:9-16", "9-16 lexemes"),
        ("kind:line_rest", "line rest"),
        ("language:c", "c"),
    ],
)
def test_strata_have_names_for_people(name, wanted):
    assert stratum(name) == wanted
