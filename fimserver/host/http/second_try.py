"""Second try of a request whose replica ended before it said anything: ASGI middleware of a router's proxy.

Ray's HTTP proxies take it from the environment variable ``RAY_VARIABLE`` (docs/deploy.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

RAY_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
RAY_VALUE = f"{__name__}:middlewares"


def middlewares() -> list[Middleware]:
    """Return the middleware of a proxy, as Ray asks for it."""
    return [Middleware(SecondTry)]


class SecondTry:
    """Runs a request again, once, if the application returns without a byte of an answer's body.

    An application that forwards to a replica returns like that when the replica dies. What was begun is never
    repeated: the client has read a part of it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _Request(receive)
        answer = _Answer(send)
        await self._app(_copy(scope), request.receive, answer.send)
        if answer.begun or request.client_left:
            return
        await self._app(_copy(scope), _Request(receive, request.received).receive, _Answer(send).send)


@dataclass
class _Request:
    """Messages of a request: first those that an earlier try has ``received``, then those of the client."""

    client: Receive
    before: list[Message] = field(default_factory=list)
    received: list[Message] = field(default_factory=list)

    async def receive(self) -> Message:
        repeated = len(self.received) < len(self.before)
        message = self.before[len(self.received)] if repeated else await self.client()
        self.received.append(message)
        return message

    @property
    def client_left(self) -> bool:
        return any(message["type"] == "http.disconnect" for message in self.received)


@dataclass
class _Answer:
    """Messages of an answer; its start is sent with the first byte of its body, or with its end."""

    client: Send
    start: Message | None = None
    begun: bool = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.start = message
            return
        if not self.begun and not message.get("body") and message.get("more_body"):
            return
        if self.start is not None:
            start, self.start = self.start, None
            self.begun = True
            await self.client(start)
        await self.client(message)


def _copy(scope: Scope) -> Scope:
    """Copy what an application may add to: an id of the try among the headers."""
    return {**scope, "headers": list(scope["headers"])}
