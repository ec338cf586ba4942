"""Copied as ``sitecustomize`` into the processes of ``test_canary``: loud logs, an audit hook, and engines that fail."""

import logging
import os
import sys

ROLE = "host" if "host" in sys.orig_argv else "front"
EVENTS = os.open(os.environ["CANARY_EVENTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
WATCHED = ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname")


def watch(event, args):
    if event == "open" and isinstance(args[0], str | bytes | os.PathLike):
        note(event, (os.path.abspath(os.fsdecode(args[0])), args[2]))  # noqa: PTH100 - links stay as they are
    elif event in WATCHED:
        note(event, str(args[1]))
    elif event == "subprocess.Popen":
        note(event, [str(part) for part in args[1]])


def note(event, args):
    os.write(EVENTS, f"{(ROLE, event, args)!r}\n".encode())


def engines(_settings):
    """Requests of files with an odd number fail, each file in another way, and every fault quotes the prompt."""
    from fimserver.errors import NonFiniteError
    from fimserver.host.fake import FakeEngines

    def script(request, _route):
        text = request.prefix + request.suffix
        faults = (
            RuntimeError(text),
            KeyError(text),
            UnicodeEncodeError("utf-8", text, 0, 1, text),
            NonFiniteError("logits: use another model"),
            MemoryError(text),
            BaseException(text),
            AssertionError(text),
        )
        number = int("".join(filter(str.isdigit, request.path)) or 0)
        yield faults[number // 2 % len(faults)] if number % 2 else "7"

    return FakeEngines(script)


sys.addaudithook(watch)
logging.basicConfig(level=logging.DEBUG, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
if ROLE == "host":
    from fimserver.host import listen

    listen.load_models = engines
