"""Errors of the HTTP interface, in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

KINDS = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "unavailable_error"}


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return ``{"error": {"message", "type", "code"}}`` with a status."""
    kind = KINDS.get(status, "invalid_request_error")
    return JSONResponse({"error": {"message": message, "type": kind, "code": status}}, status, headers)


async def unknown_address(request: HttpRequest, error: Exception) -> Response:
    """Answer Starlette's 404 and 405."""
    assert isinstance(error, HTTPException)
    message = (
        error.detail if error.status_code != 404 else "no such address: completions are at /v1/completions"
    )
    if error.status_code == 405:
        message = f"{request.method} is not served at this address"
    return error_response(error.status_code, message, error.headers)
