"""Statistics on a terminal, from this machine or from a remote host."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from fimserver.errors import InputError
from fimserver.host.http.stats_page import HEADINGS, UNITS, WORDS, cells, page, sentences
from fimserver.host.stats.store import stats_path
from fimserver.host.stats.summary import RouteTotals, Summary, summary
from fimserver.settings import Settings

OK = 200
TIMEOUT_S = 10.0


def show_stats(
    settings: Settings, *, as_json: bool = False, days: float = 30.0, html: Path | None = None
) -> None:
    """Print the statistics of this user, or of the host at ``--connect``.

    ``html``: write the page to that file instead.

    Raises ``InputError`` for a host that does not answer and a file that cannot be written.
    """
    found = fetch(settings.connect, settings.token, days) if settings.connect else summary(stats_path(), days)
    if html is not None:
        write_page(found, html)
    elif as_json:
        print(found.model_dump_json())
    else:
        render(found, Console(markup=False, highlight=False))


def write_page(found: Summary, path: Path) -> None:
    """The page of the host as a file. Raises ``InputError``."""
    try:
        path.write_text(page(found), "utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None


def fetch(url: str, token: str, days: float) -> Summary:
    """Return the statistics of a remote host. Raises ``InputError``."""
    import httpx2  # noqa: PLC0415 - only where a host is asked

    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with httpx2.Client(base_url=url, headers=headers, trust_env=False, timeout=TIMEOUT_S) as client:
            response = client.get("/stats.json", params={"days": days})
        if response.status_code == OK:
            return Summary.model_validate_json(response.content)
        message = response.json()["error"]["message"]
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        raise InputError(f"{url} does not answer ({type(error).__name__}): is --connect right?") from None
    except (ValidationError, json.JSONDecodeError, KeyError, TypeError):
        raise InputError(
            f"{url} answers, but not with statistics: does the same fimserver run there?"
        ) from None
    raise InputError(f"{url}: {message}")


def render(found: Summary, console: Console) -> None:
    """Print tables, or one line where nothing was counted."""
    if found.problem:
        console.print(found.problem)
    if found.is_empty:
        console.print(
            f"nothing was counted in the last {found.days:g} days: complete something in an editor first"
        )
        return
    for comparison in found.comparisons:
        for sentence in sentences(comparison):
            console.print(sentence)
        console.print()
    if found.lines:
        console.print(_table([*found.routes, *found.lines]))
        console.print(UNITS, style="bright_black")
    if found.nothing:
        console.print(_reasons(found))
    if found.dropped:
        console.print(f"{found.dropped} answers were not counted: the host was away")


def _table(lines: list[RouteTotals]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))  # fits into 80 columns
    for name in HEADINGS:
        table.add_column(name, justify="left" if name in WORDS else "right")
    for line in lines:
        named = line if line.language else line.model_copy(update={"language": "all", "bucket": "all"})
        table.add_row(*cells(named), style="" if line.language else "bold")
    return table


def _reasons(found: Summary) -> Table:
    table = Table("nothing shown", "times", "which is", box=None, pad_edge=False)
    for nothing in found.nothing:
        table.add_row(nothing.reason, str(nothing.count), nothing.explanation)
    return table
