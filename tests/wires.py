"""A connection between two programs that a test can cut, delay, garble and restore."""

import contextlib
import re
import socket
import struct
import threading

PAGE = b"<html><body>Sign in to this network</body></html>"
PAGE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n" % len(PAGE)
STEP_S = 0.05
AFTER_HEAD = 60  # bytes of a stream that arrive before it is cut

# Faults by where they happen; none of them ends by itself.
OF_REQUESTS = ("reset", "close", "silence", "garbage", "page", "slow reader")
# An answer that is ``late`` comes whole.
OF_ANSWERS = ("half a head", "half an answer", "garbled", "drip")


class Wire:
    """Passes bytes to ``port`` of this machine and back. ``fault`` holds for what comes from now on."""

    def __init__(self, port):
        self.fault = ""
        self._port = port
        self._over = threading.Event()
        self._open = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._open:
            _close(each)

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                self._open += [client, server]
                for pump in (self._requests, self._answers):
                    threading.Thread(target=self._pumped, args=(pump, client, server), daemon=True).start()

    def _pumped(self, pump, client, server):
        """Both ends are closed as soon as one direction ends."""
        with contextlib.suppress(OSError):
            pump(client, server)
        _close(client)
        _close(server)

    def _requests(self, client, server):
        while data := client.recv(1 << 16):
            if self.fault == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
                return
            if self.fault == "close":
                return
            if self.fault in {"garbage", "page"}:
                client.sendall(bytes(range(256)) * 8 if self.fault == "garbage" else PAGE_HEAD + PAGE)
                return
            if self.fault == "slow reader":
                self._drip(server, data)
            elif self.fault != "silence":
                server.sendall(data)

    def _answers(self, client, server):
        answer = bytearray()  # of a fault: all that came of it
        while data := server.recv(1 << 16):
            if self.fault in {"half a head", "half an answer"}:
                answer += data
                end = 20 if self.fault == "half a head" else _half(answer)
                if len(answer) >= end:
                    client.sendall(bytes(answer[:end]))
                    return
            elif self.fault == "garbled":
                head, blank, _ = data.partition(b"\r\n\r\n") if data.startswith(b"HTTP/") else (b"", b"", b"")
                begin = len(head + blank)
                client.sendall(data[:begin] + b"#" * len(data[begin:]))
            elif self.fault == "drip":
                self._drip(client, data)
            elif self.fault == "late" and self._over.wait(4 * STEP_S):
                return
            else:
                client.sendall(data)

    def _drip(self, to, data):
        """A byte at a time, until the test ends or the other end hangs up."""
        for place in range(len(data)):
            to.sendall(data[place : place + 1])
            if self._over.wait(STEP_S):
                return


def _half(answer):
    """How many bytes are a head and half of its body; of a stream, the head and a little."""
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return 1 << 30
    length = re.search(rb"(?i)content-length: (\d+)", answer[:end])
    return end + 4 + (int(length[1]) // 2 if length else AFTER_HEAD)


def _close(end):
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)  # wakes a thread that reads it
    end.close()
