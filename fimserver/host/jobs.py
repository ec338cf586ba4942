"""One request on the engines: route, choices, stop strings, and a reason for every failure."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from fimserver.engine.remote.wait import Wait, blocking
from fimserver.errors import FimError
from fimserver.host.failures import LASTING, UNABLE, problem, reason_of, where
from fimserver.host.job import DeviceLostError, EngineSource, Job
from fimserver.host.routing.chances import Chances
from fimserver.host.routing.latency import LatencySample
from fimserver.host.routing.length_model import LengthPrediction
from fimserver.host.routing.router import NO_DEADLINE_MS, Router, RoutingRequest, fit
from fimserver.host.routing.stand_in import needed_routes
from fimserver.reasons import EXPLANATIONS, Reason
from fimserver.types import ROUTES, Chunk, Deadline, Decision, Request, Route, ms_since, other
from fimserver.wire import CompletionChunk, Usage

if TYPE_CHECKING:
    from fimserver.engine.engines import Engine
    from fimserver.engine.forward.passes import Pass

    Step = CompletionChunk | Pass | Wait

log = logging.getLogger("fimserver.host")
CANDIDATE_TEMPERATURE = 0.6


def run_job(engines: EngineSource, job: Job, router: Router) -> Iterator[CompletionChunk]:
    """Chunks of every choice; each choice ends with a chunk that has its usage.

    Raises ``DeviceLostError``.
    """
    return (step for step in blocking(job_steps(engines, job, router)) if isinstance(step, CompletionChunk))


def job_steps(engines: EngineSource, job: Job, router: Router) -> Generator[Step, None, None]:
    """``run_job``, with each forward pass before it is run, as it may be run with others.

    Also yields each wait for a remote server.
    """
    try:
        length = router.expect(job.request)
        fitted = fit(job.request, length)
        chosen = router.decide(_routing_request(engines, job, router, fitted, length))
    # Such as no file descriptor for the length model: this request fails, the next one may not.
    except Exception as error:  # noqa: BLE001
        log.error("no route: %s", where(error))  # noqa: TRY400 - a traceback may quote the user's text
        yield _failed(0, Usage(route=job.route, reason=Reason.FAILED), Reason.FAILED, problem(error))
        return
    for index, (decision, request) in enumerate(_variants(job, fitted, chosen)):
        if index and job.deadline.spent():
            return
        for piece in _served(engines, job, router, index, decision, request):
            if not isinstance(piece, CompletionChunk):
                yield piece
                continue
            yield _with_chance(piece, router.chances)
            if piece.usage and piece.usage.decision and not job.warm:
                router.learn(piece.usage.decision, piece.usage.model, _seen(piece.usage))


def _with_chance(piece: CompletionChunk, chances: Chances) -> CompletionChunk:
    """The chunk, with the chance that the user accepts what it ends."""
    used = piece.usage
    if used is None or used.confidence is None:
        return piece
    chance = chances.chance(used.route, used.model, used.confidence)
    return piece.model_copy(update={"usage": used.model_copy(update={"chance": chance})})


def _routing_request(
    engines: EngineSource, job: Job, router: Router, fitted: Request, length: LengthPrediction
) -> RoutingRequest:
    """Input of the router: the routes that can run, their models, and the rows that each has to run.

    A route that cannot be loaded is not tried again for a while.
    """
    served = engines.served()
    routes = ROUTES if job.pin == "auto" else (job.pin,)
    needed = needed_routes(job.pin, router.policy, served)
    asked = routes if any(router.tripped(route) for route in needed) else needed
    rows = {route: count for route in asked if (count := _rows(engines, route, job, router)) is not None}
    able = [route for route in routes if job.pin != "auto" or not router.tripped(route)] or routes
    broken = next((why for route in routes if (why := router.tripped(route))), "")
    models = {route: served.get(route, "") for route in able}
    left_ms = min(NO_DEADLINE_MS, 1000 * job.deadline.left_s())
    return RoutingRequest(fitted, job.pin, left_ms, models, rows, broken, length)


def _rows(engines: EngineSource, route: Route, job: Job, router: Router) -> int | None:
    """Prompt tokens that a route would have to compute; ``None`` where it cannot run or cannot say."""
    if job.pin == "auto" and router.tripped(route):
        return None
    try:
        return engines.engine(route).num_uncached_tokens(job.request)
    except FimError as error:
        router.trip(route, str(error))
    except BaseException as error:
        # Not ``Exception``: tokenizers raise a PanicException. The run itself reports the error.
        if _ends_process(error):
            raise
        log.error("%s", where(error))  # noqa: TRY400 - a traceback may quote the user's text
    return None


def _seen(usage: Usage) -> LatencySample:
    passes = usage.forwards - usage.prefill.forwards
    return LatencySample(
        usage.prefill.rows, usage.prefill.ms, passes, usage.tokens, usage.total_ms, usage.reason
    )


def _served(
    engines: EngineSource, job: Job, router: Router, index: int, decision: Decision, request: Request
) -> Iterator[Step]:
    """A choice. If its route was not asked for and cannot run, the other one serves."""
    said = index > 0 or job.warm or job.pin != "auto"  # then it is too late for another route
    for piece in _guarded(engines, job, index, decision, request):
        if not isinstance(piece, CompletionChunk):
            yield piece
            continue
        said = said or bool(piece.text)
        if (
            said
            or not piece.usage
            or piece.usage.reason not in UNABLE
            or router.tripped(other(decision.route))
        ):
            yield piece
            continue
        why = piece.error or EXPLANATIONS[piece.usage.reason]
        if piece.usage.reason in LASTING:  # NaN may be this prompt's own, and a server may be back soon
            router.trip(decision.route, why)
        instead = replace(
            decision, route=other(decision.route), why=f"{decision.route} cannot run here: {why}"
        )
        yield from _guarded(engines, job, index, instead, request)


def _variants(job: Job, request: Request, chosen: Decision) -> Iterator[tuple[Decision, Request]]:
    """The request itself, then the same on the other route, then sampled ones: candidates that differ."""
    yield chosen, request
    others = (
        [replace(chosen, route=other(chosen.route), why="another candidate")] if job.pin == "auto" else []
    )
    for i in range(1, job.choices):
        if others:
            yield others.pop(), request
        else:
            warmer = max(request.sampling.temperature, CANDIDATE_TEMPERATURE)
            yield (
                chosen,
                request.with_sampling(temperature=warmer, seed=request.sampling.seed + i),
            )


def _guarded(
    engines: EngineSource, job: Job, index: int, decision: Decision, request: Request
) -> Iterator[Step]:
    """A choice that always ends with a reason.

    If memory runs out before any text was sent, caches are emptied and it is tried once more.
    """
    # The host listens before torch is imported.
    from fimserver.engine.faults import DeviceFault, fault_of, free_memory  # noqa: PLC0415

    usage = Usage(
        route=decision.route,
        model=engines.served().get(decision.route, ""),
        reason=Reason.FAILED,
        decision=decision,
        queue_ms=ms_since(job.received),
    )
    said = False
    for attempt in (1, 2):
        if attempt == 2:
            free_memory()  # here, where no traceback keeps tensors alive
        try:
            for piece in _choice(engines, job, index, request, usage):
                said = said or (isinstance(piece, CompletionChunk) and bool(piece.text))
                yield piece
        except FimError as error:
            yield _failed(index, usage, reason_of(error), str(error))
        except GeneratorExit:
            raise
        except BaseException as error:  # not ``Exception``: tokenizers raise a PanicException
            if _ends_process(error):
                raise
            fault = fault_of(error)
            log.error("%s", where(error))  # noqa: TRY400 - a traceback may quote the user's text
            if fault is DeviceFault.MEMORY and attempt == 1 and not said:
                continue
            reason = Reason.OUT_OF_MEMORY if fault is DeviceFault.MEMORY else Reason.FAILED
            yield _failed(index, usage, reason, problem(error))
            if fault is DeviceFault.DEVICE:
                raise DeviceLostError from None
        return


def _choice(engines: EngineSource, job: Job, index: int, request: Request, usage: Usage) -> Iterator[Step]:
    assert usage.route
    engine = engines.engine(usage.route)
    request = _with_room(engine, job.request, request)
    if job.warm:
        yield from _warm(engine, request, job)
        yield CompletionChunk(
            index=index,
            usage=usage.model_copy(update={"reason": job.named(job.deadline.spent()) or Reason.END}),
        )
        return
    started = time.perf_counter()
    first_ms = 0.0
    held = ""
    # Engines whose passes can run with those of others have steps.
    steps: Iterator[Chunk | Pass | Wait] = getattr(engine, "steps", engine.complete)(request, job.deadline)
    for chunk in steps:
        if not isinstance(chunk, Chunk):
            yield chunk
            continue
        added, held, stopped = _until_stop(held + chunk.text, job.stops)
        reason = Reason.BLOCK if stopped else job.named(chunk.reason)
        added += held if reason else ""
        first_ms = first_ms or (ms_since(started) if added else 0.0)
        measured = {
            "reason": reason,
            "tokens": chunk.tokens,
            "forwards": chunk.forwards,
            "ttft_ms": first_ms,
            "total_ms": ms_since(started),
            "drafting": chunk.drafting,
            "prefill": chunk.prefill,
            "confidence": chunk.confidence,
            "prompt": chunk.prompt,
        }
        canvas = chunk.canvas if job.preview and index == 0 else ()
        if added or reason or canvas:
            ended = usage.model_copy(update=measured) if reason else None
            yield CompletionChunk(index=index, text=added, canvas=canvas, usage=ended, model=usage.model)
        if reason:
            return


def _warm(engine: Engine, request: Request, job: Job) -> Iterator[Pass | Wait]:
    """Passes and waits of a warm-up; an engine without steps runs it at once."""
    steps: Callable[[Request, Deadline], Iterator[Pass | Wait]] | None = getattr(engine, "warm_steps", None)
    if steps is None:
        engine.warm(request, job.deadline)
    else:
        yield from steps(request, job.deadline)


def _ends_process(error: BaseException) -> bool:
    """Whether an error asks this process to end, such as Ctrl-C, which Python raises in the main thread."""
    return (
        isinstance(error, KeyboardInterrupt | SystemExit)
        and threading.current_thread() is threading.main_thread()
    )


def _with_room(engine: Engine, asked: Request, fitted: Request) -> Request:
    """The fitted request, but for a canvas that expands and deletes.

    It starts with as many slots as its card says.

    A start at the expected length costs DreamOn 1 to 3 points of pass@1 and a third more passes (arXiv
    2602.01326).
    """
    canvas = getattr(engine.card, "canvas", None)
    if canvas is None or canvas.length != "expand":
        return fitted
    return replace(
        fitted.with_sampling(max_tokens=asked.sampling.max_tokens),
        canvas_tokens=max(fitted.canvas_tokens, canvas.initial_tokens),
    )


def _until_stop(text: str, stops: tuple[str, ...]) -> tuple[str, str, bool]:
    """Split text into what is sent and a possible start of a stop string; also whether one was found."""
    if found := [place for stop in stops if (place := text.find(stop)) >= 0]:
        return text[: min(found)], "", True
    begun = max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
    return text[: len(text) - begun], text[len(text) - begun :], False


def _failed(index: int, usage: Usage, reason: Reason, message: str) -> CompletionChunk:
    return CompletionChunk(index=index, usage=usage.model_copy(update={"reason": reason}), error=message)
