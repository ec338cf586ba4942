"""Reading ahead: the prompt at the resting cursor is prefilled once, and only if a request would be accepted."""

import asyncio
import time

import pytest

from fimserver.front.config import Config
from fimserver.front.documents.mirror import Document, Edit
from fimserver.front.energy import Energy
from fimserver.front.gate import arrive
from fimserver.front.host_answers import failure
from fimserver.front.outcome import Outcome
from fimserver.front.read_ahead import CursorRest, ReadAhead
from fimserver.front.request import completion_body
from fimserver.front.session import Session
from fimserver.host.request import request_of
from fimserver.reasons import Reason
from fimserver.settings import Settings
from fimserver.types import Deadline

URI = "file:///work/main.py"
TEXT = "".join(f"def area_{i}(width, height):\n    return width * height + {i}\n\n\n" for i in range(40))


class ScriptedClient:
    """A host client that records requests and their deadlines."""

    def __init__(self):
        self.bodies = []

    async def complete(self, body, *, deadline_s, asked):
        assert deadline_s > time.monotonic()
        assert not asked
        self.bodies.append(body)
        return failure(Reason.END)

    async def send_events(self, _batch):
        return True


def opened(**config):
    session = Session(Config(battery="ignore").model_copy(update=config), ScriptedClient())
    session.open(Document(URI, "python", 1, TEXT))
    return session


async def settled():
    """A few rounds of the loop: timers without delay, and the work that they start."""
    for _ in range(8):
        await asyncio.sleep(0)


async def rest(reading, line, character=0, uri=URI):
    reading.moved(CursorRest(uri, line, character))
    await settled()


def test_the_prompt_at_the_cursor_is_read_as_idle_work():
    async def run():
        session = opened()
        await rest(ReadAhead(session, 0.0), 9, 4)
        return session.host.bodies

    (body,) = asyncio.run(run())
    assert body.max_tokens == 0
    assert body.n == 1
    assert body.fimserver.idle
    assert not body.fimserver.explicit
    assert body.prompt == "".join(TEXT.splitlines(keepends=True)[:9]) + "    "
    assert body.prompt + body.suffix == TEXT


def test_a_cursor_that_moves_on_is_not_followed():
    async def run():
        session = opened()
        reading = ReadAhead(session, 0.0)
        for line in (4, 8, 12):
            reading.moved(CursorRest(URI, line, 0))
        await settled()
        return session.host.bodies

    (body,) = asyncio.run(run())
    assert body.prompt.count("\n") == 12


def test_a_place_is_read_once_until_the_text_or_the_place_changes():
    async def run():
        session = opened()
        reading = ReadAhead(session, 0.0)
        counts = []
        for line in (4, 4, 8, 8):
            await rest(reading, line)
            counts.append(len(session.host.bodies))
        session.documents[URI].change(2, (), "utf-16")
        session.documents[URI].revision += 1
        await rest(reading, 8)
        return [*counts, len(session.host.bodies)]

    assert asyncio.run(run()) == [1, 1, 2, 2, 3]


def test_what_a_request_has_read_is_not_read_again():
    async def run():
        session = opened()
        reading = ReadAhead(session, 0.0)
        document = session.documents[URI]
        reading.asked(
            arrive(session, document, document.place((4, 0), "utf-16"), invoked=False, surface="inline")
        )
        await rest(reading, 4)
        return session.host.bodies

    assert asyncio.run(run()) == []


def off(session):
    session.configure(session.config.model_copy(update={"enabled": False}))


def battery(session):
    session.configure(session.config.model_copy(update={"battery": "save"}))
    session.energy = Energy(lambda: "battery", run=lambda work: work())


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(off, id="off"),
        pytest.param(
            lambda s: s.configure(s.config.model_copy(update={"trigger": "onDemand"})), id="on demand"
        ),
        pytest.param(
            lambda s: s.configure(s.config.model_copy(update={"prefetch": False})), id="no prefetch"
        ),
        pytest.param(lambda s: setattr(s, "snoozed_until_s", time.monotonic() + 60), id="snoozed"),
        pytest.param(battery, id="battery"),
        pytest.param(lambda s: setattr(s.documents[URI], "dirty", True), id="unknown text"),
        pytest.param(lambda s: s.close(URI), id="closed"),
    ],
)
def test_nothing_is_read_where_nothing_would_be_suggested(act):
    async def run():
        session = opened()
        act(session)
        await rest(ReadAhead(session, 0.0), 4)
        return session.host.bodies

    assert asyncio.run(run()) == []


def test_an_excluded_file_is_not_read():
    async def run():
        session = opened()
        session.open(Document("file:///work/.env", "plaintext", 1, "TOKEN=1\n"))
        await rest(ReadAhead(session, 0.0), 1, uri="file:///work/.env")
        return session.host.bodies

    assert asyncio.run(run()) == []


def test_nothing_is_read_beside_a_request_or_while_someone_types():
    async def run():
        session = opened()
        asked = asyncio.ensure_future(session.running.run_latest("slot", forever()))
        await settled()
        await rest(ReadAhead(session, 0.0), 4)
        asked.cancel()
        await settled()
        session.running.used()
        ReadAhead(session, 60.0)._rested(CursorRest(URI, 4, 0))
        await settled()
        return session.host.bodies

    async def forever():
        await asyncio.Event().wait()
        return Outcome(reason=Reason.END)

    assert asyncio.run(run()) == []


def test_a_delay_after_a_dismissal_is_that_of_requests_alone():
    """Reading ahead is not a request: the next request is compared with the previous request."""

    async def run():
        session = opened(calm_delay_ms=500)
        reading = ReadAhead(session, 0.0)
        document = session.documents[URI]
        await rest(reading, 4)
        request = arrive(session, document, document.place((8, 0), "utf-16"), invoked=False, surface="inline")
        return request.send_at_s - request.received_s

    assert asyncio.run(run()) < 0.5


def test_the_first_key_in_a_file_finds_its_prompt_read(nano):
    """With nano: rows that the first key must run, with and without reading ahead."""

    async def run(rests):
        session = opened()
        if rests:
            await rest(ReadAhead(session, 0.0), 81)
        session.change(URI, 2, [Edit((81, 0), (81, 0), "v")])
        document = session.documents[URI]
        request = arrive(
            session, document, document.place((81, 1), "utf-16"), invoked=False, surface="inline"
        )
        text = session.context.text(request.snapshot, *request.cells)
        context = session.context.build(text, request.snapshot, {})
        return session.host.bodies, completion_body(request, context)

    engine = nano.engine("ar")
    rows = []
    for rests in (False, True):
        engine.cache.clear()
        warmed, first_key = asyncio.run(run(rests))
        for body in warmed:
            engine.warm(request_of(body, Settings()), Deadline())
        rows.append(engine.num_uncached_tokens(request_of(first_key, Settings())))
    cold, ahead = rows
    assert cold > 300
    assert ahead <= 2 * engine.cache.chunk
