"""Dialect of another fimserver, on either route; the editor's hints are passed on."""

from __future__ import annotations

from fimserver.engine.remote.dialect import Call, Dialect, Piece, Probed, Question, ServerFacts
from fimserver.errors import NoFimError
from fimserver.reasons import ENDED, Reason
from fimserver.types import ROUTES
from fimserver.wire import CompletionBody, EditorHints, SnippetBody, read_piece

# Reasons of a complete answer; any other is a failure of the server.
_DONE = ENDED | {Reason.LENGTH, Reason.DEADLINE, Reason.EMPTY}


def recognise(found: Probed) -> ServerFacts | None:
    """Recognise ``/health``, which has a version and, once models are loaded, their names by route."""
    health = found.get("/health")
    if not isinstance(health, dict) or "version" not in health or "status" not in health:
        return None
    models = health.get("models") or {}
    routes = {route: str(models[route]) for route in ROUTES if route in models}
    names = tuple(dict.fromkeys(routes.values()))
    return ServerFacts(f"fimserver {health['version']}", names, 0, routes or None)


def call(question: Question) -> Call | None:
    request = question.request
    context = question.context
    hints = EditorHints(
        route=question.route,
        stop=request.sampling.stop,
        deadline_ms=question.left_ms or None,
        path=context.path,
        repo=context.repo,
        snippets=tuple(SnippetBody(path=each.path, text=each.text) for each in context.snippets),
        typed_chars=min(request.typed_chars, len(context.prefix)),
        features=request.features,
    )
    body = CompletionBody(
        prompt=context.prefix,
        suffix=context.suffix,
        max_tokens=request.sampling.max_tokens,
        temperature=request.sampling.temperature,
        top_p=request.sampling.top_p,
        seed=request.sampling.seed,
        stream=True,
        fimserver=hints,
    )
    sent = body.model_dump(mode="json", exclude_defaults=True)
    return Call("/v1/completions", sent | ({"max_tokens": 0} if question.warm else {}))


def read(line: str) -> Piece | None:
    piece = read_piece(line)
    if piece is None:
        return None
    if piece.usage is None:
        return Piece(piece.text)
    usage = piece.usage
    if usage.reason is Reason.BAD_INPUT:
        raise NoFimError("the server refuses the request: run the same version of fimserver on both sides")
    if usage.reason not in _DONE:
        return Piece(piece.text, failed=usage.reason)
    return Piece(piece.text, usage.reason, usage.tokens, None, usage.forwards)


DIALECT = Dialect(probes=("/health",), recognise=recognise, call=call, read=read)
