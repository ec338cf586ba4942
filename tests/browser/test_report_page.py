"""The page of a comparison in a real browser, from a file, on a wide and a narrow window, in light and dark.

FIMSERVER_SHOTS names a folder that keeps the screenshots.
"""

import os
from pathlib import Path

import pytest

from fimserver.ab.analysis.analysis import analyse
from fimserver.ab.report.page import write_page
from tests.ab.sample import make_report
from tests.browser.chromium import chromium, visit, why_not

SHOTS = os.environ.get("FIMSERVER_SHOTS", "")  # read before any fixture clears the environment
REASON = why_not()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)

SIZES = {"wide": (1280, 900), "narrow": (390, 844)}
WIDTHS = "[document.documentElement.scrollWidth, document.body.scrollWidth, innerWidth]"
CHARTS = (
    "charts => charts.map(c => { const box = c.getBoundingClientRect(); return [box.width, box.height]; })"
)
LETTERS = "texts => Math.min(...texts.map(t => t.getBoundingClientRect().height))"
HOSTILE = "</script><img src=x onerror=document.title='taken'><script>document.title='taken'</script>"


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    report = make_report(300, notes=("the run was interrupted after 300 of 400 items",))
    write_page(report, analyse(report), path)
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_fits_and_asks_for_nothing(size, scheme, browser, page, tmp_path):
    width, height = SIZES[size]
    with visit(browser, page, width=width, height=height, scheme=scheme) as seen:
        folder = Path(SHOTS or tmp_path)
        folder.mkdir(parents=True, exist_ok=True)
        seen.page.screenshot(path=folder / f"report-{size}-{scheme}.png", full_page=True)
        page_width, body_width, window = seen.page.evaluate(WIDTHS)
        charts = seen.page.eval_on_selector_all("figure svg", CHARTS)
        letters = seen.page.eval_on_selector_all("figure svg text", LETTERS)
        assert seen.complaints == []
        assert seen.requests == [page.as_uri()]
    assert max(page_width, body_width) <= window == width
    assert len(charts) == 7
    assert all(w > 250 and h > 150 for w, h in charts)
    assert letters > 8


def test_light_and_dark_differ_in_colours_alone(browser, page):
    looks = {}
    for scheme in ("light", "dark"):
        with visit(browser, page, width=1280, height=900, scheme=scheme) as seen:
            style = "e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).color]"
            looks[scheme] = (
                seen.page.eval_on_selector("body", style),
                seen.page.eval_on_selector("figure svg text", style),
            )
            height = seen.page.evaluate("document.documentElement.scrollHeight")
            looks[scheme, "height"] = height
    assert looks["light"] != looks["dark"]
    assert looks["light", "height"] == looks["dark", "height"]


def test_it_is_whole_without_script(browser, page):
    with visit(browser, page, width=1280, height=900, scheme="light", script=False) as seen:
        assert seen.page.locator("figure svg").count() == 7
        assert seen.page.locator("#items tbody tr").count() == 300
        assert seen.page.locator("input").count() == 0


def test_items_can_be_sorted_and_filtered(browser, page):
    with visit(browser, page, width=1280, height=900, scheme="light") as seen:
        rows = seen.page.locator("#items tbody tr:visible")
        seen.page.get_by_role("button", name="A, ms").click()
        times = [float(text.replace(",", "")) for text in rows.locator("td:nth-child(5)").all_inner_texts()]
        assert times == sorted(times)
        assert len(set(times)) > 10
        seen.page.get_by_role("button", name="A, ms").click()
        assert rows.locator("td:nth-child(5)").first.inner_text() == f"{max(times):,.0f}"
        seen.page.get_by_role("searchbox").fill("made_up/c.py")
        assert 0 < rows.count() < 300
        assert all("made_up/c.py" in text for text in rows.all_inner_texts())
        assert seen.complaints == []


def test_code_in_a_suggestion_does_not_run(browser, tmp_path):
    made = make_report(8, traces=0)
    rows = tuple(
        row.model_copy(
            update={"item": f"{HOSTILE}{n}", "gold": HOSTILE, "a": row.a.model_copy(update={"text": HOSTILE})}
        )
        for n, row in enumerate(made.rows)
    )
    report = made.model_copy(update={"rows": rows, "command": HOSTILE})
    path = tmp_path / "report.html"
    write_page(report, analyse(report), path)
    with visit(browser, path, width=390, height=844, scheme="light") as seen:
        assert "taken" not in seen.page.title()
        assert HOSTILE in seen.page.locator("dd", has_text="</script>").first.inner_text()
        assert seen.requests == [path.as_uri()]
        assert seen.complaints == []
        page_width, body_width, window = seen.page.evaluate(WIDTHS)
    assert max(page_width, body_width) <= window


@pytest.mark.parametrize("count", [0, 1])
def test_a_report_with_next_to_nothing_is_a_page(count, browser, tmp_path):
    report = make_report(count, traces=0)
    path = tmp_path / "report.html"
    write_page(report, analyse(report), path)
    with visit(browser, path, width=390, height=844, scheme="dark") as seen:
        assert seen.page.locator("h2").last.inner_text() == "How it was measured"
        assert seen.complaints == []
