"""Request for an engine, made from the body of an HTTP request and the settings of the host."""

from __future__ import annotations

from fimserver.settings import Settings
from fimserver.types import CONTEXT_CHARS, Request, Sampling
from fimserver.wire import CompletionBody


def request_of(body: CompletionBody, settings: Settings) -> Request:
    """Return the request for an engine; fields that the body leaves out are those of ``settings``."""
    hints = body.fimserver
    return Request(
        prefix=body.prompt[-CONTEXT_CHARS:],
        suffix=(body.suffix or "")[:CONTEXT_CHARS],
        sampling=_sampling(body, settings.sampling),
        path=hints.path,
        repo=hints.repo,
        snippets=tuple(snippet.snippet() for snippet in hints.snippets),
        lookup=tuple(file.snippet() for file in hints.lookup),
        typed_chars=hints.typed_chars,
        features=hints.features,
        deadline_ms=hints.deadline_ms or settings.deadline_ms,
    )


def _sampling(body: CompletionBody, default: Sampling) -> Sampling:
    """Return ``default`` with the fields of the body.

    ``top_p`` 0 leaves only the likeliest token, so it is greedy decoding.
    """
    temperature = default.temperature if body.temperature is None else body.temperature
    return Sampling(
        max_tokens=body.max_tokens or default.max_tokens,
        temperature=0.0 if body.top_p == 0 else temperature,
        top_p=body.top_p or default.top_p,
        seed=default.seed if body.seed is None else body.seed,
        stop=body.fimserver.stop or default.stop,
    )
