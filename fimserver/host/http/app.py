"""Knows the HTTP endpoints. Knows nothing of sockets, and of engines only that jobs go to a scheduler.

Every request is answered at its deadline at the latest, whatever the engine does; dropping the connection stops the work.
"""

from __future__ import annotations

import asyncio
import hmac
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route as Endpoint

from fimserver import __version__
from fimserver.cards import read_cards
from fimserver.errors import FimError, InputError
from fimserver.events import MAX_BATCH_BYTES, read_batch
from fimserver.host.http.dialects import READERS, props
from fimserver.host.http.pages import PAGES
from fimserver.host.http.responses import Shape
from fimserver.host.jobs import Job
from fimserver.host.request import request_of
from fimserver.host.scheduler import Scheduler
from fimserver.host.stats.prometheus import Metrics
from fimserver.host.stats.store import Stats
from fimserver.reasons import EXPLANATIONS, Reason
from fimserver.settings import Settings
from fimserver.types import ROUTES, Deadline
from fimserver.wire import MAX_BODY_BYTES, CompletionBody, CompletionChunk, Usage

GRACE_MS = 200  # what an engine gets after the deadline to hand over what is good
HARD_DEADLINE_MS = 120_000


@dataclass
class Host:
    """What the endpoints share. ``allowed_hosts`` and ``token`` are set on TCP only."""

    settings: Settings
    scheduler: Scheduler
    token: str = ""
    allowed_hosts: frozenset[str] = frozenset()
    stats: Stats = field(default_factory=Stats)
    metrics: Metrics = field(init=False)
    last_used: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.scheduler)


def make_app(host: Host) -> Starlette:
    """The ASGI application."""

    def bound(handler: Callable[[Host, HttpRequest], Awaitable[Response]]) -> Callable[[HttpRequest], Awaitable[Response]]:
        async def endpoint(request: HttpRequest) -> Response:
            if (refusal := _refusal(host, request)) is not None:
                return refusal
            host.last_used = time.monotonic()
            return await handler(host, request)

        return endpoint

    return Starlette(
        routes=[
            Endpoint("/health", bound(health)),
            Endpoint("/v1/models", bound(models)),
            Endpoint("/metrics", bound(metrics)),
            Endpoint("/props", bound(props)),
            *(Endpoint(path, bound(completions), methods=["POST"]) for path in READERS),
            Endpoint("/v1/events", bound(events), methods=["POST"]),
            *(Endpoint(path, bound(page), methods=["GET"]) for path, page in PAGES.items()),
        ]
    )


async def health(host: Host, _: HttpRequest) -> Response:
    """200 when models are loaded; 503 while they are being loaded or cannot be."""
    state = host.scheduler.state
    body: dict[str, Any] = {"status": "ok" if state is None else state, "version": __version__}
    if state is None:
        return JSONResponse(body | {"models": dict(host.scheduler.served)})
    body["error"] = {"message": host.scheduler.problem or EXPLANATIONS[state]}
    return JSONResponse(body, 503)


async def models(host: Host, _: HttpRequest) -> Response:
    """The names that ``model`` may have."""
    names = ["auto", *ROUTES, *dict.fromkeys(host.scheduler.served.values())]
    return JSONResponse({"object": "list", "data": [{"id": n, "object": "model", "owned_by": "fimserver"} for n in names]})


async def metrics(host: Host, _: HttpRequest) -> Response:
    """Counters for Prometheus."""
    return Response(host.metrics.text(), media_type="text/plain; version=0.0.4")


async def events(host: Host, request: HttpRequest) -> Response:
    """Take in what became of answers."""
    try:
        batch = read_batch(await _read(request, MAX_BATCH_BYTES))
    except FimError as error:
        return _error(400, str(error))
    except ClientDisconnect:
        return Response(status_code=400)  # which nobody reads
    await asyncio.to_thread(host.stats.add, batch)
    return Response(status_code=204)


async def completions(host: Host, request: HttpRequest) -> Response:
    """Fill a middle, streamed or in one piece, asked and answered in the shape that the address stands for."""
    try:
        body, shape = READERS[request.url.path](await _read(request))
        job, answers = make_job(host, body)
    except FimError as error:
        return _error(400, str(error))
    except ClientDisconnect:
        return Response(status_code=400)  # which nobody reads
    request_id = f"cmpl-{uuid.uuid4().hex}"
    pieces = _pieces(host, job, answers)
    if body.stream:
        return StreamingResponse(_stream(pieces, request_id, shape), media_type="text/event-stream")
    gone = asyncio.ensure_future(_gone(request, host, job))
    try:
        return JSONResponse(shape.whole([piece async for piece in pieces], request_id, body.n))
    finally:
        gone.cancel()


Answers = asyncio.Queue[CompletionChunk | None]


def make_job(host: Host, body: CompletionBody) -> tuple[Job, Answers]:
    """A job and the queue that its pieces come out of, both bound to the running loop. Raises ``InputError``."""
    loop, answers, known, settings = asyncio.get_running_loop(), Answers(), body.fimserver, host.settings
    deadline_ms = known.deadline_ms or settings.deadline_ms or HARD_DEADLINE_MS
    job = Job(
        key=(known.session, f"{known.document}\0idle" if known.idle else known.document or uuid.uuid4().hex),
        request=request_of(body, settings),
        pin=_pin(host, body),
        budget=Deadline.of_ms(deadline_ms),
        sink=lambda piece: _put(loop, answers, piece),
        choices=body.n,
        stops=body.stops,
        warm=body.max_tokens == 0,
        idle=known.idle,
        preview=known.preview and body.stream,
    )
    return job, answers


def _put(loop: asyncio.AbstractEventLoop, answers: Answers, piece: CompletionChunk | None) -> None:
    """From the engine thread into the loop, which may be gone."""
    try:
        loop.call_soon_threadsafe(answers.put_nowait, piece)
    except RuntimeError:
        return


def _pin(host: Host, body: CompletionBody) -> Any:
    """The route that the caller, or else the user, wants. Raises ``InputError`` for a model that is not served here."""
    pin = body.fimserver.route
    if body.model in {"", "auto", "fimserver"}:
        return host.settings.model if pin == "auto" else pin
    for route in ROUTES:
        if body.model in {route, host.scheduler.served.get(route)}:
            return route if pin == "auto" else pin
    served = ", ".join(dict.fromkeys(["auto", *ROUTES, *host.scheduler.served.values()]))
    what = "is served only when the host is started with it" if body.model in read_cards() else "is not known"
    raise InputError(f"model {body.model!r} {what}: use one of {served}")


async def _pieces(host: Host, job: Job, answers: Answers) -> AsyncIterator[CompletionChunk]:
    """Pieces until the end or the deadline. Leaving early withdraws the job."""
    host.scheduler.submit(job)
    ended: set[int] = set()
    try:
        while (piece := await _next(answers, job)) is not None:
            if piece.usage:
                ended.add(piece.index)
                host.metrics.observe(piece.usage)
            yield piece
        if not ended:  # the deadline came before the engine said anything final
            yield CompletionChunk(usage=_late(host, job))
    finally:
        host.scheduler.withdraw(job)


async def _next(answers: Answers, job: Job) -> CompletionChunk | None:
    assert job.budget.deadline is not None  # make_job sets one
    try:
        left = max(0.0, job.budget.deadline - time.monotonic()) + GRACE_MS / 1000
        return await asyncio.wait_for(answers.get(), left) if answers.empty() else answers.get_nowait()
    except TimeoutError:
        return None


def _late(host: Host, job: Job) -> Usage:
    reason = Reason.LOADING if host.scheduler.state is Reason.LOADING else Reason.DEADLINE
    usage = Usage(route="ar" if job.pin == "auto" else job.pin, model="", reason=reason)
    host.metrics.observe(usage)
    return usage


async def _stream(pieces: AsyncIterator[CompletionChunk], request_id: str, shape: Shape) -> AsyncIterator[bytes]:
    """Server-sent events, one for each piece."""
    async for piece in pieces:
        yield shape.event(piece, request_id)
    yield shape.done


async def _gone(request: HttpRequest, host: Host, job: Job) -> None:
    """Withdraw the job when the caller hangs up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    host.scheduler.withdraw(job)


async def _read(request: HttpRequest, limit: int = MAX_BODY_BYTES) -> bytes:
    """The body, if it is not too large. Raises ``InputError``."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > limit:
            raise InputError(f"the body is larger than {limit >> 20} MiB")
    return bytes(data)


def _refusal(host: Host, request: HttpRequest) -> Response | None:
    """Why a request over TCP is not served: a web page must not reach us, nor anyone without the token."""
    if not host.token:
        return None
    if "origin" in request.headers:
        return _error(403, "requests of web pages are not served")
    if _name(request.headers.get("host", "")) not in host.allowed_hosts:
        return _error(403, "the Host header names another machine: start with --allow-host NAME")
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if request.url.path in PAGES:  # which a browser asks for, and it can say the token in the address only
        given = given or request.query_params.get("token", "")
    if not hmac.compare_digest(given.encode(), host.token.encode()):
        return _error(401, "the token is missing or wrong: send Authorization: Bearer TOKEN")
    return None


def _name(host_header: str) -> str:
    """A Host header without its port. Starlette's own reading takes a malformed one for the address that we listen on."""
    name, _, port = host_header.lower().rpartition(":")
    return (name if port.isdecimal() else host_header.lower()).removeprefix("[").removesuffix("]")


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error", "code": status}}, status)
