"""HTTP application of a host: its routes and the small endpoints. Completions are in ``completions``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import Field
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as Endpoint

from fimserver import __version__
from fimserver.errors import FimError
from fimserver.events import MAX_BATCH_BYTES, read_batch
from fimserver.host.http.auth import Guard
from fimserver.host.http.completions import completions, read_request
from fimserver.host.http.dialects import READERS, props
from fimserver.host.http.errors import error_response, unknown_address
from fimserver.host.http.pages import PAGES
from fimserver.host.http.state import Host
from fimserver.json_body import RequestBody, read_json
from fimserver.reasons import EXPLANATIONS
from fimserver.types import ROUTES

PAUSE_MINUTES = 10.0
MAX_PAUSE_MINUTES = 1440.0
MAX_PAUSE_BYTES = 1 << 20
Handler = Callable[[Host, HttpRequest], Awaitable[Response]]


def make_app(host: Host) -> Starlette:
    """Make the ASGI application."""

    def bound(handler: Handler) -> Callable[[HttpRequest], Awaitable[Response]]:
        async def endpoint(request: HttpRequest) -> Response:
            return await handler(host, request)

        return endpoint

    app = Starlette(
        routes=[
            Endpoint("/health", bound(health)),
            Endpoint("/v1/models", bound(models)),
            Endpoint("/v1/models/{name:path}", bound(model)),
            Endpoint("/metrics", bound(metrics)),
            Endpoint("/props", bound(props)),
            *(Endpoint(path, bound(completions), methods=["POST"]) for path in READERS),
            Endpoint("/v1/events", bound(events), methods=["POST"]),
            Endpoint("/v1/pause", bound(pause), methods=["POST"]),
            Endpoint("/v1/resume", bound(resume), methods=["POST"]),
            *(Endpoint(path, bound(page), methods=["GET"]) for path, page in PAGES.items()),
        ],
        middleware=[Middleware(Guard, host=host)],
        exception_handlers={HTTPException: unknown_address},
    )
    app.router.redirect_slashes = False  # ``Guard`` cleans paths; behind TLS a redirect would say http://
    return app


async def health(host: Host, _: HttpRequest) -> Response:
    """Answer 200 when models are loaded, 503 while they are loading or if they cannot be loaded."""
    state = host.scheduler.state
    body: dict[str, Any] = {"status": "ok" if state is None else state, "version": __version__}
    if state is None:
        return JSONResponse(body | {"models": dict(host.scheduler.served)})
    body["error"] = {"message": host.scheduler.problem or EXPLANATIONS[state]}
    return JSONResponse(body, 503)


def _names(host: Host) -> list[str]:
    return list(dict.fromkeys(["auto", *ROUTES, *host.scheduler.served.values()]))


def _model(name: str) -> dict[str, str]:
    return {"id": name, "object": "model", "owned_by": "fimserver"}


async def models(host: Host, _: HttpRequest) -> Response:
    """List the names that ``model`` accepts."""
    return JSONResponse({"object": "list", "data": [_model(name) for name in _names(host)]})


async def model(host: Host, request: HttpRequest) -> Response:
    """Describe one of these names."""
    name = request.path_params["name"]
    if name in _names(host):
        return JSONResponse(_model(name))
    return error_response(404, f"no such model here: use one of {', '.join(_names(host))}")


async def metrics(host: Host, _: HttpRequest) -> Response:
    """Return the metrics for Prometheus."""
    return Response(host.metrics.text(), media_type="text/plain; version=0.0.4")


class PauseBody(RequestBody):
    """``POST /v1/pause``. ``minutes``: maximum length of the pause."""

    minutes: float = Field(PAUSE_MINUTES, gt=0, le=MAX_PAUSE_MINUTES)


async def pause(host: Host, request: HttpRequest) -> Response:
    """Unload the models until an explicit request, ``/v1/resume`` or the time limit."""
    try:
        asked = read_json(PauseBody, await read_request(request, MAX_PAUSE_BYTES) or b"{}")
    except FimError as error:
        return error_response(400, str(error))
    except TimeoutError:
        return error_response(408, "the body did not arrive in time")
    except ClientDisconnect:
        return Response(status_code=400)  # which nobody reads
    host.scheduler.pause(asked.minutes * 60)
    return JSONResponse({"status": "paused", "minutes": asked.minutes})


async def resume(host: Host, _: HttpRequest) -> Response:
    """End a pause."""
    host.scheduler.resume()
    return JSONResponse({"status": host.scheduler.state or "ok"})


async def events(host: Host, request: HttpRequest) -> Response:
    """Store the outcomes of suggestions."""
    try:
        batch = read_batch(await read_request(request, MAX_BATCH_BYTES))
    except FimError as error:
        return error_response(400, str(error))
    except TimeoutError:
        return error_response(408, "the body did not arrive in time")
    except ClientDisconnect:
        return Response(status_code=400)  # which nobody reads
    await asyncio.to_thread(host.stats.add, batch)
    return Response(status_code=204)
