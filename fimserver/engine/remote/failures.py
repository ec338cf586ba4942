"""Failures of a remote server: turns an HTTP status or an error in a stream into a ``RemoteError``.

Messages name the server and the kind of failure; the server's own words are left out, as they may quote the
user's text.
"""

from __future__ import annotations

import json

from fimserver.errors import (
    BadKeyError,
    GarbledError,
    NoFimError,
    OverloadedError,
    RemoteError,
    TooLongError,
    WarmingError,
    WrongModelError,
)

_LENGTH = (
    "context length",
    "context size",
    "context_size",
    "context window",
    "too long",
    "too large",
    "max_model_len",
)
_FIM = ("suffix", "infill", "insert", "fim", "not_supported")
_MODEL = ("model",)
_ABSENT = ("not found", "not_found", "does not exist", "unknown", "invalid model", "no such")


def error_of(status: int, body: bytes, url: str) -> RemoteError:
    """Return the error of an answer whose HTTP status is not 200."""
    text = _message(body)
    match status:
        case 401 | 403:
            error: RemoteError = BadKeyError(
                f"{url} refuses the key: put the right one into FIMSERVER_REMOTE_KEY, or where the card says"
            )
        case 503 if "load" in text and "overload" not in text:
            error = WarmingError(f"{url} is loading its model")
        case 429 | 503:
            error = OverloadedError(f"{url} is overloaded or not available now")
        case 413:
            error = TooLongError(f"{url} does not accept a prompt of this length")
        case 404 | 400 | 422 | 501 | 405:
            error = _refused(status, text, url)
        case _:
            error = GarbledError(f"{url} answered with HTTP {status}")
    return error


def error_in_stream(kind: str, url: str) -> RemoteError:
    """Return the error for a kind of failure in a stream."""
    word = kind.lower()
    if word in {"busy", "overloaded", "paused"} or "overload" in word or "capacity" in word:
        return OverloadedError(f"{url} is overloaded")
    if word == "loading" or "unavailable" in word:
        return WarmingError(f"{url} is loading its model")
    if _has(word, _LENGTH):
        return TooLongError(f"{url} does not accept a prompt of this length")
    if word == "no_model" or (_has(word, _MODEL) and _has(word, _ABSENT)):
        return WrongModelError(f"{url} does not have the model: `fimserver doctor` lists its models")
    if word == "no_fim" or _has(word, _FIM):
        return NoFimError(f"{url}: its model cannot fill in the middle")
    return GarbledError(f"{url} failed in the middle of an answer")


def _refused(status: int, text: str, url: str) -> RemoteError:
    """Return the error of a status that refuses the request."""
    if _has(text, _LENGTH):
        return TooLongError(f"{url} does not accept a prompt of this length")
    if _has(text, _MODEL) and _has(text, _ABSENT) and not _has(text, ("infill", "insert")):
        return WrongModelError(f"{url} does not have the model: `fimserver doctor` lists its models")
    if status in {404, 405, 501} or _has(text, _FIM):
        return NoFimError(f"{url}, or its model, cannot fill in the middle (HTTP {status})")
    return GarbledError(f"{url} does not accept the request (HTTP {status})")


def _has(text: str, words: tuple[str, ...]) -> bool:
    return any(word in text for word in words)


def _message(body: bytes) -> str:
    """Return the text of an error in the formats of OpenAI, Mistral and Ollama, to classify it."""
    try:
        data = json.loads(body)
    except ValueError:
        return ""
    error = data.get("error", data) if isinstance(data, dict) else {}
    if isinstance(error, dict):
        error = " ".join(str(error.get(key, "")) for key in ("type", "code", "message", "detail"))
    return str(error).lower()[:2000]
