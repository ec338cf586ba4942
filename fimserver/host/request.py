"""Request for an engine, made from the body of an HTTP request and the settings of the host."""

from __future__ import annotations

from fimserver.settings import Settings
from fimserver.types import CONTEXT_CHARS, Request
from fimserver.wire import CompletionBody


def request_of(body: CompletionBody, settings: Settings) -> Request:
    """Return the request for an engine; a field that the body leaves out takes its value from ``settings``.

    ``top_p`` 0 leaves only the likeliest token, so it is greedy decoding.
    """
    hints = body.fimserver
    return Request(
        prefix=body.prompt[-CONTEXT_CHARS:],
        suffix=(body.suffix or "")[:CONTEXT_CHARS],
        max_tokens=body.max_tokens or settings.max_tokens,
        temperature=0.0
        if body.top_p == 0
        else settings.temperature
        if body.temperature is None
        else body.temperature,
        top_p=body.top_p or settings.top_p,
        seed=settings.seed if body.seed is None else body.seed,
        stop=hints.stop or settings.stop,
        path=hints.path,
        repo=hints.repo,
        snippets=tuple(snippet.snippet() for snippet in hints.snippets),
        typed_chars=hints.typed_chars,
        features=hints.features,
    )
