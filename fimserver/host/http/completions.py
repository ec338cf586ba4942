"""Completion endpoint: turns a request body into a job, and the job's chunks into the answer.

Every request is answered by its deadline, whatever the engine does; closing the connection stops the work.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse

from fimserver.cards import read_cards
from fimserver.errors import FimError, InputError
from fimserver.host.http.dialects import READERS
from fimserver.host.http.errors import error_response
from fimserver.host.http.responses import Shape, Stamp
from fimserver.host.http.state import Host
from fimserver.host.job import Job
from fimserver.host.request import request_of
from fimserver.reasons import EXPLANATIONS, Reason
from fimserver.types import MAX_DEADLINE_MS, ROUTES, Deadline, RoutePin
from fimserver.wire import MAX_BODY_BYTES, CompletionBody, CompletionChunk, Usage

GRACE_MS = 200  # how long after the deadline an engine may still deliver
BODY_S = 30.0  # time limit for receiving a body
Answers = asyncio.Queue[CompletionChunk | None]


async def completions(host: Host, request: HttpRequest) -> Response:
    """Fill a middle, streamed or in one piece, in the dialect of the path."""
    try:
        body, shape = READERS[request.url.path](await read_request(request))
        job, answers = make_job(host, body, caller_of(request, body))
    except FimError as error:
        return error_response(400, str(error))
    except TimeoutError:
        return error_response(408, "the body did not arrive in time")
    except ClientDisconnect:
        return Response(status_code=400)  # which nobody reads
    stamp = Stamp(f"cmpl-{uuid.uuid4().hex}", int(time.time()))
    chunks = _chunks(host, job, answers)
    if body.stream:
        return StreamingResponse(_stream(chunks, stamp, shape), media_type="text/event-stream")
    gone = asyncio.ensure_future(_gone(request, host, job))
    try:
        found = [chunk async for chunk in chunks]
    finally:
        gone.cancel()
    if any(chunk.usage and chunk.usage.reason is Reason.OVERLOADED for chunk in found):
        return error_response(429, EXPLANATIONS[Reason.OVERLOADED], {"Retry-After": "1"})
    return JSONResponse(shape.whole(found, stamp, body.n))


async def read_request(request: HttpRequest, limit: int = MAX_BODY_BYTES) -> bytes:
    """Read the body. Raises ``InputError`` if it is too large, ``TimeoutError`` if it does not arrive."""
    data = bytearray()
    async with asyncio.timeout(BODY_S):
        async for part in request.stream():
            data += part
            if len(data) > limit:
                raise InputError(f"the body is larger than {limit >> 20} MiB")
    return bytes(data)


def caller_of(request: HttpRequest, body: CompletionBody) -> str:
    """Return the unit of fair scheduling: the user's name, else the session, else the client's address."""
    address = request.client.host if request.client else ""
    return request.scope.get("fimserver.user") or body.fimserver.session or address


def make_job(host: Host, body: CompletionBody, caller: str = "") -> tuple[Job, Answers]:
    """Make a job, and the queue for its chunks, bound to the running loop.

    ``caller``: unit of fair scheduling. Raises ``InputError``.
    """
    loop = asyncio.get_running_loop()
    answers = Answers()
    hints = body.fimserver
    document = f"{hints.document}\0idle" if hints.idle else hints.document or uuid.uuid4().hex
    job = Job(
        key=(hints.session, document),
        request=request_of(body, host.settings),
        pin=_pin(host, body),
        deadline=Deadline.of_ms(hints.deadline_ms or host.settings.deadline_ms or MAX_DEADLINE_MS),
        sink=lambda chunk: _put(loop, answers, chunk),
        choices=body.n,
        stops=body.stops,
        warm=body.max_tokens == 0,
        idle=hints.idle,
        explicit=hints.explicit,
        preview=hints.preview and body.stream,
        user=caller,
    )
    return job, answers


def _put(loop: asyncio.AbstractEventLoop, answers: Answers, chunk: CompletionChunk | None) -> None:
    """Hand a chunk from the engine thread to the loop, which may be closed."""
    try:
        loop.call_soon_threadsafe(answers.put_nowait, chunk)
    except RuntimeError:
        return


def _pin(host: Host, body: CompletionBody) -> RoutePin:
    """Return the route that the request, or else the settings, ask for.

    Raises ``InputError`` for a model that is not served here.
    """
    pin = body.fimserver.route
    if body.model in {"", "auto", "fimserver"}:
        return host.settings.model if pin == "auto" else pin
    for route in ROUTES:
        if body.model in {route, host.scheduler.served.get(route)}:
            return route if pin == "auto" else pin
    served = ", ".join(dict.fromkeys(["auto", *ROUTES, *host.scheduler.served.values()]))
    what = "is served only when the host is started with it" if body.model in read_cards() else "is not known"
    raise InputError(f"model {body.model!r} {what}: use one of {served}")


async def _chunks(host: Host, job: Job, answers: Answers) -> AsyncIterator[CompletionChunk]:
    """Yield chunks until the end or the deadline. Closing the generator withdraws the job."""
    host.scheduler.submit(job)
    ended = False
    try:
        while (chunk := await _next(answers, job)) is not None:
            if chunk.usage:
                ended = True
                host.metrics.observe(chunk.usage)
            yield chunk
        if not ended:  # the deadline came before the engine ended any choice
            yield _late(host, job)
    finally:
        host.scheduler.withdraw(job)


async def _next(answers: Answers, job: Job) -> CompletionChunk | None:
    assert job.deadline.expires_s is not None  # make_job sets one
    try:
        left = max(0.0, job.deadline.expires_s - time.monotonic()) + GRACE_MS / 1000
        return await asyncio.wait_for(answers.get(), left) if answers.empty() else answers.get_nowait()
    except TimeoutError:
        return None


def _late(host: Host, job: Job) -> CompletionChunk:
    """Return the last chunk of a request whose deadline passed; the reason may be that models are loading."""
    loading = host.scheduler.state is Reason.LOADING
    reason = Reason.LOADING if loading else Reason.DEADLINE
    usage = Usage(route=job.route, reason=reason)
    host.metrics.observe(usage)
    return CompletionChunk(usage=usage, error=EXPLANATIONS[reason] if loading else "")


async def _stream(chunks: AsyncIterator[CompletionChunk], stamp: Stamp, shape: Shape) -> AsyncIterator[bytes]:
    """Yield server-sent events, one per chunk."""
    usages = []
    async for chunk in chunks:
        if chunk.usage:
            usages.append(chunk.usage)
        yield shape.event(chunk, stamp)
    yield shape.end(usages, stamp)


async def _gone(request: HttpRequest, host: Host, job: Job) -> None:
    """Withdraw the job when the client disconnects."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    host.scheduler.withdraw(job)
