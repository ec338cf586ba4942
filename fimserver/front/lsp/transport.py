"""Transport of messages over the two pipes of an editor.

Framing is strict where a mistake would lose synchronisation (header grammar, lengths) and lenient elsewhere
(case, blanks, bare LF). A reader thread and a writer thread own the pipes, so an editor that does not write
or does not read cannot stall the server.
"""

from __future__ import annotations

import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator

MAX_HEADER_BYTES = 8 * 1024
MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_PENDING_BYTES = 64 * 1024 * 1024
STALL_S = 3.0
_BEGUN = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+(?::[^\r\n]*)?)?\r?")  # of a header line
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n]*?)[ \t]*\r?")


class FramingError(Exception):
    """The stream has lost synchronisation: nothing after this can be trusted."""


class Decoder:
    """Decodes a stream of bytes into message bodies."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._length: int | None = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Add bytes and yield the bodies that are now complete. Raises ``FramingError``."""
        self._buffer += data
        while True:
            if self._length is None:
                self._length = self._header()
            if self._length is None or len(self._buffer) < self._length:
                return
            body = bytes(self._buffer[: self._length])
            del self._buffer[: self._length]
            self._length = None
            yield body

    def _header(self) -> int | None:
        """Read the content length of the next body; ``None`` while its header is incomplete."""
        length: int | None = None
        start = 0
        while (end := self._buffer.find(b"\n", start)) >= 0:
            line = bytes(self._buffer[start:end])
            start = end + 1
            if not line.strip(b"\r"):
                if length is None:
                    raise FramingError("a header without Content-Length")
                del self._buffer[:start]
                return length
            length = _length(line, length)
        if len(self._buffer) > MAX_HEADER_BYTES or not _BEGUN.fullmatch(self._buffer, start):
            raise FramingError("not a header")
        return None


def _length(line: bytes, length: int | None) -> int | None:
    """Read one header line: return its Content-Length, or ``length`` for another header."""
    match = _HEADER.fullmatch(line)
    if not match or len(line) > MAX_HEADER_BYTES:
        raise FramingError("not a header")
    if match[1].lower() != b"content-length":
        return length
    if not match[2].isdigit() or len(match[2]) > 10 or int(match[2]) > MAX_BODY_BYTES:
        raise FramingError("a message too large, or of no length")
    return int(match[2])


def encode(body: bytes) -> bytes:
    """Return a body with its header."""
    return b"Content-Length: %d\r\n\r\n" % len(body) + body


class PipeReader(threading.Thread):
    """Reads bodies from a descriptor. Calls ``ended`` once: with a problem, or ``None`` at end of file."""

    def __init__(
        self, fd: int, received: Callable[[list[bytes]], None], ended: Callable[[str | None], None]
    ) -> None:
        super().__init__(name="lsp-reader", daemon=True)
        self._fd = fd
        self._received = received
        self._ended = ended

    def run(self) -> None:
        decoder = Decoder()
        try:
            while data := os.read(self._fd, 1 << 16):
                self._feed(decoder, data)
        except FramingError as error:
            self._ended(str(error))
        except OSError:
            self._ended(None)
        else:
            self._ended(None)

    def _feed(self, decoder: Decoder, data: bytes) -> None:
        """Hand over all complete bodies at once, also those before a framing error."""
        bodies: list[bytes] = []
        try:
            bodies.extend(decoder.feed(data))
        finally:
            if bodies:
                self._received(bodies)


class PipeWriter(threading.Thread):
    """Writes bodies in order. ``stuck``: the editor has stopped reading."""

    def __init__(self, fd: int) -> None:
        super().__init__(name="lsp-writer", daemon=True)
        self._fd = fd
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._pending = 0
        self._progress = time.monotonic()

    def send(self, body: bytes) -> None:
        """Queue one body. Never blocks."""
        data = encode(body)
        with self._lock:
            if not self._pending:
                self._progress = time.monotonic()
            self._pending += len(data)
        self._queue.put(data)

    def close(self, timeout_s: float) -> None:
        """Write what is queued, for at most ``timeout_s``."""
        self._queue.put(None)
        self.join(timeout_s)

    @property
    def stuck(self) -> bool:
        with self._lock:
            stalled = self._pending > 0 and time.monotonic() - self._progress > STALL_S
            return stalled or self._pending > MAX_PENDING_BYTES

    def run(self) -> None:
        while (data := self._queue.get()) is not None:
            view = memoryview(data)
            while view:
                try:
                    written = os.write(self._fd, view[: 1 << 16])
                except OSError:
                    return  # the editor is gone; the reader sees the end
                view = view[written:]
                with self._lock:
                    self._pending -= written
                    self._progress = time.monotonic()


def claim_pipes() -> tuple[int, int]:
    """Return private descriptors of stdin and stdout; libraries print to stderr and read an empty stdin."""
    pipe_in = os.dup(0)
    pipe_out = os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    return pipe_in, pipe_out
