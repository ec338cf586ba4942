"""Knows an arm that is a host elsewhere. Knows nothing of what it is compared with."""

from __future__ import annotations

import time
from typing import Any

import httpx2

from fimserver import __version__
from fimserver.ab.arms.arm import OF_A_REQUEST, ArmAnswer, filled, request_of
from fimserver.ab.items.spans import Span
from fimserver.ab.schema import Arm
from fimserver.errors import FimError, InputError
from fimserver.front.host_client import message_of
from fimserver.settings import Settings
from fimserver.types import ROUTES, Request, ms_since
from fimserver.wire import CompletionBody, EditorHints, read_piece

OK = 200
TIMEOUT_S = 150.0


class RemoteArm:
    """A host elsewhere. Its caches are its own business: an item of an earlier run may be warm there."""

    def __init__(self, spec: str, url: str, settings: Settings) -> None:
        self._settings, self._url = settings, url
        headers = {"Authorization": f"Bearer {settings.token}"} if settings.token else {}
        self._client = httpx2.Client(base_url=url, headers=headers, timeout=TIMEOUT_S, trust_env=False)
        try:
            health = self._get("/health")
        except InputError:
            self._client.close()
            raise
        served = {route: str(health["models"][route]) for route in ROUTES if route in health.get("models", {})}
        told = settings.model_dump(mode="json", include={*OF_A_REQUEST})
        self.arm = Arm(spec=spec, models=served, version=str(health.get("version", "")), settings=told)

    def fill(self, span: Span, *, warm: bool) -> ArmAnswer:
        body = self._body(request_of(span, self._settings))
        if warm:
            self._stream(body.model_copy(update={"max_tokens": 0}), time.perf_counter())
        return self._stream(body, time.perf_counter())

    def cancel_ms(self, span: Span, after_ms: float) -> float | None:  # noqa: ARG002 - what a host does then cannot be seen
        return None

    def close(self) -> None:
        self._client.close()

    def _body(self, request: Request) -> CompletionBody:
        settings = self._settings
        known = EditorHints(
            route=settings.model, stop=settings.stop, deadline_ms=settings.deadline_ms, session="ab", document="ab",
            path=request.path[-1000:], features=request.features,
        )  # fmt: skip
        return CompletionBody(
            prompt=request.prefix,
            suffix=request.suffix,
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=settings.seed,
            stream=True,
            fimserver=known,
        )

    def _stream(self, body: CompletionBody, started: float) -> ArmAnswer:
        text, first_ms, last = "", 0.0, None
        try:
            with self._client.stream(
                "POST", "/v1/completions", content=body.model_dump_json(exclude_defaults=True)
            ) as response:
                if response.status_code != OK:
                    response.read()
                    raise InputError(f"{self._url}: {message_of(response)} (version {self.arm.version}, here {__version__})")
                for line in response.iter_lines():
                    if (piece := read_piece(line)) is not None:
                        text += piece.text
                        first_ms = first_ms or (ms_since(started) if piece.text else 0.0)
                        last = piece
        except httpx2.HTTPError as error:
            raise FimError(f"{self._url} broke off: {type(error).__name__}") from None
        return filled(text, last, first_ms, ms_since(started))

    def _get(self, path: str) -> dict[str, Any]:
        try:
            response = self._client.get(path)
        except httpx2.HTTPError as error:
            raise InputError(f"{self._url} cannot be reached ({type(error).__name__}): is `fimserver serve` running?") from None
        if response.status_code != OK:
            raise InputError(f"{self._url}: {message_of(response)}")
        found: dict[str, Any] = response.json()
        return found
