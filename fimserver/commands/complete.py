"""Completions for the command line: requested as an editor does, and run as in a host."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from fimserver.errors import FimError, InputError, ModelError, NonFiniteError, RemoteError
from fimserver.front.syntax.features import features
from fimserver.host.job import EngineSource, Job
from fimserver.host.jobs import run_job
from fimserver.host.routing.latency import LatencyModel
from fimserver.host.routing.router import Router
from fimserver.host.routing.stand_in import needed_routes
from fimserver.paths import latency_path
from fimserver.reasons import EXPLANATIONS, Reason
from fimserver.settings import Settings
from fimserver.types import CONTEXT_CHARS, Chunk, Completion, Deadline, Request, Route, ms_since
from fimserver.wire import CompletionBody, CompletionChunk, EditorHints, Usage, gather

if TYPE_CHECKING:
    from fimserver.engine.engines import Engine

# The error that each failing reason is raised as.
FAILURES: Mapping[Reason, type[FimError]] = {
    Reason.NO_MODEL: ModelError,
    Reason.BAD_INPUT: InputError,
    Reason.NON_FINITE: NonFiniteError,
    Reason.OUT_OF_MEMORY: ModelError,
    Reason.LOADING: ModelError,
    Reason.OVERLOADED: ModelError,
    Reason.PAUSED: ModelError,
    Reason.FAILED: FimError,
    Reason.AWAY: RemoteError,
    Reason.BAD_KEY: RemoteError,
    Reason.WRONG_MODEL: RemoteError,
    Reason.NO_FIM: RemoteError,
    Reason.TOO_LONG: RemoteError,
    Reason.GARBLED: RemoteError,
}


class TimedMiddle(NamedTuple):
    """The first choice of an answer. Times are milliseconds at the caller, from the request on."""

    text: str
    usage: Usage
    first_ms: float  # to the first text; to the end where there was none
    total_ms: float
    error: str = ""


def text_body(
    prefix: str, suffix: str, settings: Settings, *, path: str = "", language: str | None = None
) -> CompletionBody:
    """Return the request that an editor would send for text of no local file, such as a row of a benchmark.

    ``language``: fimserver's name of the language, ``None`` for plain text.
    """
    prefix = valid_unicode(prefix[-CONTEXT_CHARS:])
    suffix = valid_unicode(suffix[:CONTEXT_CHARS])
    hints = EditorHints(
        route=settings.model,
        stop=settings.stop,
        deadline_ms=settings.deadline_ms,
        path=valid_unicode(path)[-1000:],
        features=features(language, prefix, suffix),
    )
    return CompletionBody(
        prompt=prefix,
        suffix=suffix,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=settings.seed,
        stream=True,
        fimserver=hints,
    )


def valid_unicode(text: str) -> str:
    """Return text that JSON in UTF-8 can carry: a lone surrogate becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if not text.isascii() else text


def complete(
    engines: EngineSource,
    request: Request,
    settings: Settings,
    watch: Callable[[CompletionChunk], None] | None = None,
) -> TimedMiddle:
    """Fill one middle in this process. ``watch`` gets every chunk, canvases too. Raises ``FimError``.

    Models are loaded before ``settings.deadline_ms`` begins to count.
    """
    for route in needed_routes(settings.model, settings.policy, engines.served()):
        engines.engine(route)
    job = Job(
        key=("", ""),
        request=request,
        pin=settings.model,
        deadline=Deadline.of_ms(settings.deadline_ms),
        sink=lambda _chunk: None,
        preview=watch is not None,
    )
    router = Router(settings.policy, LatencyModel(latency_path(settings)), seed=settings.seed)
    return checked(timed(watched(run_job(engines, job, router), watch)))


def watched(
    chunks: Iterable[CompletionChunk], watch: Callable[[CompletionChunk], None] | None
) -> Iterator[CompletionChunk]:
    """Pass chunks on, each shown to ``watch`` first."""
    for chunk in chunks:
        if watch:
            watch(chunk)
        yield chunk


def timed(chunks: Iterable[CompletionChunk]) -> TimedMiddle:
    """Fold a stream into its first choice and measure it.

    Raises ``FimError`` where the stream ended too soon.
    """
    started = time.perf_counter()
    first_ms = 0.0

    def stamped() -> Iterator[CompletionChunk]:
        nonlocal first_ms
        for chunk in chunks:
            first_ms = first_ms or (ms_since(started) if chunk.text else 0.0)
            yield chunk

    answer = gather(stamped())
    total_ms = ms_since(started)
    if not answer.middles:
        raise FimError(answer.message or "an answer came without its end: run the command again")
    middle = answer.middles[0]
    return TimedMiddle(middle.text, middle.usage, first_ms or total_ms, total_ms, answer.message)


def checked(middle: TimedMiddle) -> TimedMiddle:
    """Return the middle, or raise the ``FimError`` of an answer that failed."""
    if failure := FAILURES.get(middle.usage.reason):
        raise failure(middle.error or EXPLANATIONS[middle.usage.reason])
    return middle


def finished(middle: TimedMiddle) -> Completion:
    """Return a completion for the terminal and for JSON."""
    usage = middle.usage
    return Completion(
        middle=middle.text,
        route=usage.route,
        model=usage.model,
        tokens=usage.tokens,
        forwards=usage.forwards,
        ttft_ms=middle.first_ms,
        total_ms=middle.total_ms,
        reason=usage.reason,
        drafting=usage.drafting,
        why=usage.decision.why if usage.decision else "",
        prompt=usage.prompt,
    )


class WatchedEngines:
    """Engines that pass every chunk to ``watch``; the chunks of a job lack the rounds of speculation."""

    def __init__(self, engines: EngineSource, watch: Callable[[Chunk], None]) -> None:
        self._engines = engines
        self._watch = watch

    def engine(self, route: Route) -> Engine:
        return WatchedEngine(self._engines.engine(route), self._watch)

    def served(self) -> Mapping[Route, str]:
        return self._engines.served()


class WatchedEngine:
    """One of ``WatchedEngines``."""

    def __init__(self, engine: Engine, watch: Callable[[Chunk], None]) -> None:
        self.card = engine.card
        self._engine = engine
        self._watch = watch

    def warm(self, request: Request, deadline: Deadline) -> None:
        self._engine.warm(request, deadline)

    def num_uncached_tokens(self, request: Request) -> int:
        return self._engine.num_uncached_tokens(request)

    def complete(self, request: Request, deadline: Deadline) -> Iterator[Chunk]:
        for chunk in self._engine.complete(request, deadline):
            self._watch(chunk)
            yield chunk
