"""Files over HTTP: reads a URL from any offset; a URL from the user as a source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

import httpx2

from fimserver.cards import Card
from fimserver.errors import InputError, SourceError
from fimserver.store.sources import ANSWER_S, STALL_S, Event, ModelFile, Received, pinned_files

PARTIAL = 206
BEYOND_THE_END = 416
REFUSED = frozenset({401, 403})
MISSING = frozenset({404, 410})


class UrlSource:
    """A URL from the user, of the file or of its folder. The file must have the hash in the card."""

    extra_bytes = 0

    def __init__(self, card: Card, url: str) -> None:
        """Raises ``InputError`` for an invalid URL, or if the card pins no file."""
        if urlsplit(url).scheme not in {"http", "https"}:
            raise InputError(
                f"--from {url}: give an http or https URL; a file on this disk: fimserver models add PATH"
            )
        if not pinned_files(card):
            raise InputError(
                f"--from: the card of {card.name} pins no file; set HF_ENDPOINT to a mirror of the hub"
                " instead"
            )
        self._card = card
        self._url = url

    @property
    def label(self) -> str:
        """Scheme and host."""
        return place(self._url)

    def files(self) -> tuple[ModelFile, ...]:
        """Return the one file that the card pins."""
        return pinned_files(self._card)

    def read(self, file: ModelFile, offset: int) -> Iterator[Event]:
        """Read the file from ``offset`` on. Raises ``SourceError``."""
        url = self._url + file.name if self._url.endswith("/") else self._url
        return read_url(url, offset, file.size_bytes)


def read_url(
    url: str, offset: int, size_bytes: int, headers: Mapping[str, str] | None = None
) -> Iterator[Event]:
    """Read a URL from ``offset`` on; if the server does not support ranges, the start is skipped.

    ``size_bytes``: expected size of the whole file, 0 if unknown. Raises ``SourceError`` with the host.
    """
    asked = {**(headers or {}), "Accept-Encoding": "identity", "Range": f"bytes={offset}-"}
    limits = httpx2.Timeout(ANSWER_S, read=STALL_S)
    try:
        with httpx2.stream("GET", url, headers=asked, follow_redirects=True, timeout=limits) as response:
            yield from _body(response, url, offset, size_bytes)
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        raise SourceError(f"{place(url)}: {_reason(error)}") from None


def place(url: str) -> str:
    """Scheme and host of a URL, without credentials."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}"


def _body(response: httpx2.Response, url: str, offset: int, size_bytes: int) -> Iterator[Event]:
    yield Received()
    status = response.status_code
    if status == BEYOND_THE_END:  # the file is complete, or too long: the hash decides
        return
    if status in REFUSED:
        raise SourceError(
            f"{place(url)} refuses {urlsplit(url).path} ({status}): it may need a token (HF_TOKEN) or a"
            " licence"
        )
    if status in MISSING:
        raise SourceError(f"{place(url)} has no {urlsplit(url).path} ({status})")
    if not response.is_success:
        raise SourceError(f"{place(url)} answers {status} {response.reason_phrase}")
    announced = _announced_bytes(response)
    if size_bytes and announced and announced != size_bytes:
        raise SourceError(
            f"{place(url)} has another file there: {announced:,} bytes instead of {size_bytes:,}"
        )
    skip = 0 if status == PARTIAL else offset
    for chunk in response.iter_bytes():  # without a buffer, which would be lost if the connection breaks
        yield chunk[skip:]
        skip = max(0, skip - len(chunk))


def _announced_bytes(response: httpx2.Response) -> int:
    """Size of the whole file according to the server, 0 if it does not say."""
    size = response.headers.get("Content-Length", "")
    if response.status_code == PARTIAL:
        size = response.headers.get("Content-Range", "").rpartition("/")[2]
    return int(size) if size.isdecimal() else 0


def _reason(error: Exception) -> str:
    if isinstance(error, httpx2.TimeoutException):
        return "no answer in time"
    text = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return (
        "its name is not known here: no network?"
        if "Name or service not known" in text or "nodename" in text
        else text
    )
