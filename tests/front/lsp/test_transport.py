"""Framing: lenient if possible, else strict; no file descriptor can stall the server."""

import os
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fimserver.front.lsp import transport
from fimserver.front.lsp.transport import Decoder, FramingError, PipeReader, PipeWriter, encode


@pytest.mark.parametrize(
    "header",
    [
        b"Content-Length: 2\r\n\r\n",
        b"content-length:2\r\n\r\n",
        b"CONTENT-LENGTH:   2  \r\n\r\n",
        b"Content-Length: 2\n\n",
        b"Content-Type: application/vscode-jsonrpc; charset=utf-8\r\nContent-Length: 2\r\n\r\n",
        b"Content-Length: 2\r\nX-Other: a: b\r\n\r\n",
    ],
)
def test_headers_that_are_clear_are_taken(header):
    assert list(Decoder().feed(header + b"{}")) == [b"{}"]


@pytest.mark.parametrize(
    "data",
    [
        b"Content-Length: 1000000000000\r\n\r\n",
        b"Content-Length: 99999999999999999999\r\n\r\n",
        b"Content-Length: -2\r\n\r\n",
        b"Content-Length: two\r\n\r\n",
        b"Content-Type: x\r\n\r\n{}",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
        b'{"jsonrpc":"2.0"}\n',
        b"\x00\x01\x02",
        b"A" * (transport.MAX_HEADER_BYTES + 1),
        b"Content-Length: 2\r\n\r\n{}}\r\n",
    ],
)
def test_what_is_out_of_step_is_said_to_be(data):
    with pytest.raises(FramingError):
        list(Decoder().feed(data))


@given(st.lists(st.binary(max_size=40), max_size=6), st.lists(st.integers(1, 9), min_size=1, max_size=200))
def test_bodies_come_out_whole_however_they_are_cut(bodies, cuts):
    stream, decoder, found = b"".join(map(encode, bodies)), Decoder(), []
    for cut in cuts * (len(stream) // sum(cuts) + 1):
        found += decoder.feed(stream[:cut])
        stream = stream[cut:]
    assert [*found, *decoder.feed(stream)] == bodies


def test_the_reader_hands_over_bodies_and_the_end():
    out, into = os.pipe()
    got, ended = [], threading.Event()
    reader = PipeReader(out, got.extend, lambda problem: ended.set() if problem is None else None)
    reader.start()
    os.write(into, encode(b"one") + encode(b"two"))
    os.close(into)
    assert ended.wait(60)
    assert got == [b"one", b"two"]
    os.close(out)


def test_a_deaf_editor_stalls_nobody_and_is_noticed(monkeypatch):
    monkeypatch.setattr(transport, "STALL_S", 0.2)
    out, into = os.pipe()
    writer = PipeWriter(into)
    writer.start()
    for _ in range(100):
        writer.send(b"x" * 10_000)  # far more than a pipe holds
    end = time.monotonic() + 60
    while not writer.stuck and time.monotonic() < end:
        time.sleep(0.01)
    assert writer.stuck
    while os.read(out, 1 << 20):
        if not writer.stuck:
            break
    os.close(out)


def test_what_was_queued_is_written_before_the_end():
    out, into = os.pipe()
    writer = PipeWriter(into)
    writer.start()
    writer.send(b"last words")
    writer.close(5)
    assert os.read(out, 100) == encode(b"last words")
    os.close(out)
    os.close(into)
