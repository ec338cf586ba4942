"""Client of a remote host for the command line: checks that it is a fimserver, then streams completions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2

from fimserver import __version__
from fimserver.errors import FimError, InputError, OtherServerError
from fimserver.types import ROUTES, Route
from fimserver.wire import CompletionBody, CompletionChunk, read_piece

OK = 200
UNAUTHORISED = 401
FORBIDDEN = 403
UNAVAILABLE = 503
TIMEOUT_S = 150.0


class RemoteHost:
    """A host of fimserver at ``url``. Raises ``InputError`` at once where another server answers, or none."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            self._client = httpx2.Client(base_url=url, headers=headers, timeout=TIMEOUT_S, trust_env=False)
        except (httpx2.InvalidURL, ValueError):
            raise InputError(f"{url!r} is not a URL: give http://HOST:PORT") from None
        try:
            health = self._health()
        except FimError:
            self.close()
            raise
        self.version = str(health.get("version", ""))
        self.models: dict[Route, str] = {
            route: str(health["models"][route]) for route in ROUTES if route in health["models"]
        }

    def stream(self, body: CompletionBody) -> Iterator[CompletionChunk]:
        """Ask for a completion, ``body.stream`` being true. Raises ``FimError``."""
        content = body.model_dump_json(exclude_defaults=True)
        try:
            with self._client.stream("POST", "/v1/completions", content=content) as response:
                if response.status_code != OK:
                    response.read()
                    versions = f"(version {self.version}, here {__version__})"
                    raise InputError(f"{self.url}: {error_message(response)} {versions}")
                yield from (
                    chunk for line in response.iter_lines() if (chunk := read_piece(line)) is not None
                )
        except (httpx2.HTTPError, OSError) as error:
            raise FimError(f"{self.url} broke off: {type(error).__name__}") from None

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _health(self) -> dict[str, Any]:
        response = self._get("/health")
        if response.status_code in {UNAUTHORISED, FORBIDDEN}:
            raise InputError(f"{self.url}: {error_message(response)}")
        found = _json(response)
        if response.status_code == UNAVAILABLE and "version" in found:
            raise FimError(f"{self.url} has no model to answer with: {error_message(response)}")
        if response.status_code != OK or not isinstance(found.get("models"), dict):
            raise OtherServerError(
                f"{self.url} is not a fimserver host{self._what_it_is()}: run `fimserver serve` there"
            )
        return found

    def _what_it_is(self) -> str:
        """Return what a server of another kind says about itself at ``/v1/models``; vLLM and llama.cpp do."""
        try:
            models = _json(self._client.get("/v1/models")).get("data")
        except httpx2.HTTPError:
            return ""
        first = models[0] if isinstance(models, list) and models and isinstance(models[0], dict) else {}
        name, owner = (str(first.get(key, ""))[:80] for key in ("id", "owned_by"))
        return f" but another server ({owner or 'unnamed'}, model {name})" if name else ""

    def _get(self, path: str) -> httpx2.Response:
        try:
            return self._client.get(path)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
            why = type(error).__name__
            raise InputError(f"{self.url} cannot be reached ({why}): is `fimserver serve` running?") from None


def error_message(response: httpx2.Response) -> str:
    """Return the message of an error in OpenAI's shape, or the status."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}"


def _json(response: httpx2.Response) -> dict[str, Any]:
    try:
        found = response.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
