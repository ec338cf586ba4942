"""Guard of a host: normalises paths, checks Host, Origin and token, and turns exceptions into a 500."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import re
from urllib.parse import urlsplit

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fimserver.errors import InputError
from fimserver.host.failures import where
from fimserver.host.http.errors import error_response
from fimserver.host.http.pages import PAGES
from fimserver.host.http.state import Host

log = logging.getLogger("fimserver.host")
_BEARER = re.compile(r"\s*(?:bearer\s+)?(.*?)\s*", re.IGNORECASE | re.DOTALL)
_PRINTABLE = re.compile(r"[^!-~]")
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_.])?")


class Guard:
    """ASGI middleware that guards the endpoints."""

    def __init__(self, app: ASGIApp, host: Host) -> None:
        self._app = app
        self._host = host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = dict(scope) | {"path": clean_path(scope["path"])}
        request = HttpRequest(scope)
        user = user_of(self._host, request)
        if (response := refusal(self._host, request, user)) is not None:
            await response(scope, receive, send)
            return
        scope["fimserver.user"] = user or ""
        self._host.last_used = self._host.clock()
        await self._answered(scope, receive, send)

    async def _answered(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run an endpoint; an exception becomes a 500 without its message, which may quote the text."""
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        # The server's own handler would log a traceback with its message.
        except Exception as error:  # noqa: BLE001
            log.error("%s", where(error))  # noqa: TRY400
            if not begun:
                await error_response(500, "something failed: the log of the host names the place")(
                    scope, receive, send
                )


def clean_path(path: str) -> str:
    """Remove doubled and trailing slashes: clients join base URLs in different ways."""
    return re.sub("/+", "/", path).rstrip("/") or "/"


def user_of(host: Host, request: HttpRequest) -> str | None:
    """Return the user's name for a request's token, empty if the host has one token for all.

    ``None`` if the token is missing or unknown.
    """
    given = _token(request)
    if host.token_file is not None:
        return host.token_file.user(given)
    return "" if hmac.compare_digest(given.encode("utf-8", "surrogateescape"), host.token.encode()) else None


def refusal(host: Host, request: HttpRequest, user: str | None) -> Response | None:
    """Refuse a TCP request from a web page, for another host name, or without a valid token."""
    if not host.token and host.token_file is None:
        return None
    if "origin" in request.headers:
        return error_response(403, "requests of web pages are not served")
    called = header_name(request.headers.get("host", ""))
    if called not in host.allowed_hosts and called != _own_address(request):
        name = _PRINTABLE.sub("?", called)[:100]
        return error_response(
            403, f"the Host header names another machine ({name!r}): start with --allow-host NAME"
        )
    if user is None:
        message = (
            "the token is missing or wrong: set FIMSERVER_TOKEN for fimserver; others send Authorization:"
            " Bearer TOKEN"
        )
        return error_response(401, message, {"WWW-Authenticate": "Bearer"})
    return None


def _token(request: HttpRequest) -> str:
    match = _BEARER.fullmatch(request.headers.get("authorization", ""))
    given = match[1] if match else ""
    if request.url.path in PAGES:  # a browser can send the token only in the URL
        given = given or request.query_params.get("token", "")
    return given


def _own_address(request: HttpRequest) -> str:
    """Return the IP address on which this connection arrived. DNS rebinding cannot forge an address."""
    server = request.scope.get("server")
    try:
        return str(ipaddress.ip_address(server[0])) if server else ""
    except ValueError:
        return ""


def header_name(host_header: str) -> str:
    """Return a Host header without its port; Starlette would replace a malformed one by our own address."""
    name, _, port = host_header.lower().rpartition(":")
    name = name if port.isdecimal() else host_header.lower()
    return name[1:-1] if name.startswith("[") and name.endswith("]") else name


def allowed_name(given: str) -> str:
    """Normalise a value of --allow-host: without scheme, port and brackets. Raises ``InputError``."""
    text = given.strip().lower()
    try:
        if "://" in text:
            text = urlsplit(text).netloc.rpartition("@")[2]
        text = text.removesuffix("/")
        if _is_address(bare := text.strip("[]")):
            return bare
        name = header_name(text)
        if _is_address(name) or _NAME.fullmatch(name):
            return name
    except ValueError:
        pass
    raise InputError(
        f"--allow-host {given!r} is not a host name: give the name that clients use, for example gpu-box"
    )


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
