"""Remote engine: fills middles by a remote server, and ends them by the same rules as local engines."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import replace

from fimserver.cards import Card
from fimserver.engine.output import MiddleText
from fimserver.engine.remote.connection import RemoteConnection
from fimserver.engine.remote.context import TextContext, TokenRate, cut_text, marker_texts
from fimserver.engine.remote.dialect import Call, Piece, Question
from fimserver.engine.remote.failures import error_in_stream
from fimserver.engine.remote.server import RemoteServer, ask_server, key_of
from fimserver.engine.remote.wait import Wait, blocking, result_of
from fimserver.errors import AwayError, CardError, GarbledError, NoFimError, RemoteError, TooLongError
from fimserver.reasons import Reason
from fimserver.types import Chunk, Deadline, Prefill, Request, Route, ms_since

COUNT_SHARE = 0.5  # of the room: a prompt that is shorter than that by the safe guess is not counted
FIXED_ROWS = 32  # rows of a prefill that the round trip is taken to cost


class RemoteEngine:
    """Engine of one route on a remote server, whose dialect is found out at the first request.

    While the server is silent, ``steps`` yields a ``Wait``, so that other requests go on.
    """

    def __init__(self, card: Card, route: Route) -> None:
        if card.remote is None:
            raise CardError(f"{card.name} has no [remote]")
        self.card = card
        self.remote = card.remote
        self.route: Route = route
        self.rate = TokenRate()
        self.connection = RemoteConnection(self.remote.url, key_of(self.remote))
        self._server: RemoteServer | None = None
        self._asking: Wait | None = None  # set while a request finds out the dialect
        self._sent = ""  # text of the last prompt, which the server's cache may hold

    def server(self, deadline: Deadline) -> RemoteServer:
        """Return what the server is; it is found out again after a failure. Raises ``RemoteError``."""
        return result_of(self._known(deadline))

    def _known(self, deadline: Deadline) -> Generator[Wait, None, RemoteServer]:
        """Do what ``server`` does, yielding waits; one request at a time asks the server."""
        while self._server is None:
            if self._asking is None:
                yield from self._ask(deadline)
            elif deadline.spent():
                raise AwayError(f"{self.remote.url} does not answer: is it running?")
            else:
                yield self._asking
        return self._server

    def _ask(self, deadline: Deadline) -> Generator[Wait, None, None]:
        asking = self._asking = Wait()
        try:
            self._server = yield from ask_server(self.connection, self.card, self.route, deadline)
        finally:
            self._asking = None
            asking.arrive()

    def warm(self, request: Request, deadline: Deadline) -> None:
        """Have the server prefill the prompt, if its dialect can ask for that."""
        result_of(self.warm_steps(request, deadline))

    def warm_steps(self, request: Request, deadline: Deadline) -> Generator[Wait, None, None]:
        """Do what ``warm`` does, yielding the waits."""
        server = yield from self._known(deadline)
        question = yield from self._question(server, request, deadline)
        call = server.dialect.call(replace(question, warm=True))
        if call is not None:
            for piece in self._pieces(server, call, deadline):
                if isinstance(piece, Wait):
                    yield piece
            self._sent = question.context.text

    def num_uncached_tokens(self, request: Request) -> int:
        """Estimate the tokens after the common prefix with the last prompt, without asking the server."""
        return self._uncached(self._cut(self._server, request).text)

    def complete(self, request: Request, deadline: Deadline) -> Iterator[Chunk]:
        """Yield a chunk for each piece; the last one has the reason. Raises ``RemoteError``."""
        return blocking(self.steps(request, deadline))

    def steps(self, request: Request, deadline: Deadline) -> Generator[Chunk | Wait, None, None]:
        """Do what ``complete`` does, yielding the waits."""
        said = False  # whether a chunk had text
        for attempt in (1, 2):
            try:
                for chunk in self._complete(request, deadline):
                    said = said or (isinstance(chunk, Chunk) and bool(chunk.text))
                    yield chunk
            except TooLongError:
                self._server = None
                if said or attempt == 2:
                    raise
                self.rate.shrink()
                continue
            except RemoteError:
                self._server = None  # another one may be there next time
                if said or (reason := deadline.spent()) is None:
                    raise
                yield Chunk("", 0, 0, reason)
            return

    def _complete(self, request: Request, deadline: Deadline) -> Iterator[Chunk | Wait]:
        started = time.perf_counter()
        server = yield from self._known(deadline)
        question = yield from self._question(server, request, deadline)
        call = server.dialect.call(question)
        assert call is not None
        rows = self._uncached(question.context.text)
        self._sent = question.context.text
        middle = RemoteMiddle(request, marker_texts(question.fim))
        prefill = Prefill()
        tokens = 0
        forwards = 0
        pieces = self._pieces(server, call, deadline)
        try:
            for piece in pieces:
                if isinstance(piece, Wait):
                    yield piece
                    continue
                prefill = prefill if prefill.forwards else Prefill(rows, 1, ms_since(started))
                tokens = max(tokens + bool(piece.text), piece.tokens or 0)
                forwards = piece.forwards or tokens + 1
                if piece.prompt_tokens:
                    self.rate.learn(question.context.text, piece.prompt_tokens)
                text, reason = middle.take(piece)
                if reason := reason or deadline.spent():
                    text += middle.rest()
                yield Chunk(text, tokens, forwards, reason, prefill=prefill)
                if reason:
                    return
        finally:
            pieces.close()  # closes the connection, so that the server stops
        if (reason := deadline.spent()) is None:
            raise AwayError(f"{self.remote.url} closed the connection in the middle of an answer")
        yield Chunk(middle.rest(), tokens, forwards, reason, prefill=prefill)

    def _pieces(
        self, server: RemoteServer, call: Call, deadline: Deadline
    ) -> Generator[Piece | Wait, None, None]:
        """Yield the pieces of a stream, and the waits for them. Raises ``RemoteError``."""
        lines = self.connection.lines(call, deadline)
        try:
            for line in lines:
                if isinstance(line, Wait):
                    yield line
                    continue
                try:
                    piece = server.dialect.read(line)
                except NoFimError as error:
                    raise NoFimError(f"{self.remote.url}: {error}") from None
                except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
                    raise GarbledError(
                        f"{self.remote.url} sent an answer that cannot be read: is it the right server?"
                    ) from None
                if piece is not None and piece.failed:
                    raise error_in_stream(piece.failed, self.remote.url)
                if piece is not None:
                    yield piece
        finally:
            lines.close()

    def _question(
        self, server: RemoteServer, request: Request, deadline: Deadline
    ) -> Generator[Wait, None, Question]:
        left_ms = (
            None if deadline.expires_s is None else max(1.0, (deadline.expires_s - time.monotonic()) * 1000)
        )
        context = self._cut(server, request)
        tight = self.rate.tokens(context.text) > self._room(server, request) * COUNT_SHARE
        if tight and not self.rate.known and server.dialect.count:
            yield from self._count(server, context.text, deadline)
            context = self._cut(server, request)
        return Question(
            request,
            context,
            self.remote,
            server.model,
            server.fim,
            server.facts.software,
            self.route,
            left_ms,
        )

    def _count(self, server: RemoteServer, text: str, deadline: Deadline) -> Generator[Wait, None, None]:
        """Have the server count the tokens of a text, to know the bytes per token."""
        assert server.dialect.count is not None
        question = (server.dialect.count(text, server.model),)
        ((status, answer),) = yield from self.connection.ask(question, deadline)
        with suppress(ValueError, KeyError, TypeError):
            if status == 200:
                self.rate.learn(text, server.dialect.counted(answer))

    def _cut(self, server: RemoteServer | None, request: Request) -> TextContext:
        """Cut the context to the room for a prompt."""
        markers = marker_texts(server.fim) if server else ()
        return cut_text(request, self.card, self._room(server, request), self.rate, markers)

    def _room(self, server: RemoteServer | None, request: Request) -> int:
        """Return the longest prompt in tokens: the card's, within the server's context less the middle."""
        context = server.facts.context_tokens if server else 0
        return (
            min(self.card.prompt_tokens, context - request.sampling.max_tokens)
            if context
            else self.card.prompt_tokens
        )

    def _uncached(self, text: str) -> int:
        pairs = zip(self._sent, text, strict=False)
        shared = next(
            (at for at, (one, other) in enumerate(pairs) if one != other), min(len(self._sent), len(text))
        )
        return FIXED_ROWS + self.rate.tokens(text[shared:])


class RemoteMiddle:
    """The text of a streamed middle, ended by the stop rules or by a marker in the server's text."""

    def __init__(self, request: Request, markers: tuple[str, ...]) -> None:
        self._middle = MiddleText(request)
        self._markers = markers
        self._whole = ""

    def take(self, piece: Piece) -> tuple[str, Reason | None]:
        """Return what a piece adds to the text that can be shown, and the reason if the middle ends."""
        self._whole += piece.text
        end = min((at for m in self._markers if (at := self._whole.find(m)) >= 0), default=-1)
        whole = self._whole[:end] if end >= 0 else self._whole[: len(self._whole) - self._begun()]
        text = self._middle.show(whole)
        if self._middle.reason:
            return text, self._middle.reason
        ended = Reason.END if end >= 0 else piece.reason
        if ended is None:
            return text, None
        if end < 0:
            text += self._middle.show(self._whole)
        if self._middle.reason:
            return text, self._middle.reason
        text += self._middle.rest()
        return text, Reason.EMPTY if ended is Reason.END and not self._middle.text.strip() else ended

    def rest(self) -> str:
        """Return text that was held back, at the end of the middle."""
        return self._middle.rest()

    def _begun(self) -> int:
        """Return the number of characters at the end that may be the start of a marker."""
        tail = self._whole[-40:]
        sizes = (
            n for m in self._markers for n in range(1, min(len(m), len(tail) + 1)) if tail.endswith(m[:n])
        )
        return max(sizes, default=0)
