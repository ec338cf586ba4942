"""Endpoints of the statistics: a page for browsers, and JSON."""

from __future__ import annotations

import asyncio

from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, Response

from fimserver.host.http.state import Host
from fimserver.host.stats.summary import Summary, summary

DAYS = 30
PRIVATE = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}


async def stats(host: Host, request: HttpRequest) -> Response:
    """Return a page that refreshes itself."""
    from fimserver.host.http.stats_page import page, policy  # noqa: PLC0415 - most hosts are never asked

    html = page(await _summary(host, request), refreshes=True)
    headers = {
        "Content-Security-Policy": f"{policy()}; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
    }
    return HTMLResponse(html, headers=headers | PRIVATE)


async def stats_json(host: Host, request: HttpRequest) -> Response:
    """Return the summary as JSON."""
    found = await _summary(host, request)
    return Response(found.model_dump_json(), media_type="application/json", headers=PRIVATE)


async def _summary(host: Host, request: HttpRequest) -> Summary:
    given = request.query_params.get("days", "")
    days = int(given) if given.isdecimal() and len(given) < 5 else DAYS
    return await asyncio.to_thread(summary, host.stats.path, days, host.stats.problem)


PAGES = {"/stats": stats, "/stats.json": stats_json}
