"""Superseded requests, and requests of closed documents."""

import asyncio

import pytest

from fimserver.front.config import Config
from fimserver.front.documents.mirror import Document
from fimserver.front.energy import Energy
from fimserver.front.outcome import Outcome
from fimserver.front.session import RejectedText, Session
from fimserver.reasons import Reason


class NoLine:
    async def close(self):
        pass


@pytest.fixture
def session():
    return Session(Config(), NoLine())


async def forever(cleaned=None):
    try:
        await asyncio.sleep(60)
    finally:
        if cleaned is not None:
            await asyncio.sleep(0.2)  # what is cancelled may take its time to clean up
    return Outcome(reason=Reason.END)


async def at_once():
    return Outcome(reason=Reason.END)


async def after(session, slots, act):
    """Start work in slots, act, and return how each ended; ``None``: it is still running."""
    asked = [asyncio.ensure_future(session.running.run_latest(slot, forever(cleaned=True))) for slot in slots]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    acted = act()
    if asyncio.iscoroutine(acted):
        await acted
    for _ in range(20):  # rounds of the loop, for what needs no time
        await asyncio.sleep(0)
    ends = [task.result().reason if task.done() else None for task in asked]
    for task in asked:
        task.cancel()
    return ends


SLOTS = ("a.py\0inline", "a.py\0menu", "a.py2\0inline")


@pytest.mark.parametrize(
    ("act", "ends"),
    [
        pytest.param(
            lambda s: s.running.run_latest("a.py\0inline", at_once()),
            [Reason.SUPERSEDED, None, None],
            id="newer in one slot",
        ),
        pytest.param(
            lambda s: s.close("a.py"), [Reason.SUPERSEDED] * 2 + [None], id="one document is closed"
        ),
        pytest.param(lambda s: s.configure(Config(model="ar")), [Reason.SUPERSEDED] * 3, id="other settings"),
        pytest.param(lambda s: s.close("a"), [None] * 3, id="another document is closed"),
    ],
)
def test_what_ends_and_is_answered_at_once(act, ends, session):
    assert asyncio.run(after(session, SLOTS, lambda: act(session))) == ends


def test_a_cancelled_request_ends_its_work(session):
    async def run():
        stopped = asyncio.Event()

        async def work():
            try:
                await asyncio.sleep(60)
            finally:
                stopped.set()

        asked = asyncio.ensure_future(session.running.run_latest("a\0inline", work()))
        await asyncio.sleep(0.01)
        asked.cancel()
        await asyncio.wait_for(stopped.wait(), 5)
        with pytest.raises(asyncio.CancelledError):
            await asked

    asyncio.run(run())


def test_a_document_that_is_opened_again_is_a_new_one(session):
    first = Document("u", "python", 1, "old")
    session.open(first)
    session.open(Document("u", "python", 1, "new"))
    assert session.documents["u"] is not first


@pytest.mark.parametrize(
    ("uri", "before", "left"),
    [
        ("u", "x = ", {"compute(b)"}),
        ("u", "x = comp", {"ute(b)"}),
        ("u", "x = other", set()),
        ("u", "y = ", set()),
        ("v", "x = ", set()),
    ],
)
def test_what_was_dismissed_is_known_at_its_place_only(uri, before, left, session):
    session.reject(RejectedText("u", "x = ", "compute(b)"))
    assert session.rejected_at(uri, before) == left


@pytest.mark.parametrize("wanted", [True, False])
def test_the_host_is_told_of_suggestions_only_where_the_user_lets_us(wanted):
    class Listening:
        told: list[bytes] = []

        async def send_events(self, batch):
            self.told.append(batch)
            return True

    line = Listening()
    line.told = []
    assert asyncio.run(Session(Config(stats=wanted), line).send_events(b"batch"))
    assert line.told == ([b"batch"] if wanted else [])


@pytest.fixture
def reads(monkeypatch):
    """The readings of the power state that were begun."""
    reads = []
    energy = Energy(lambda: "battery", run=reads.append)
    monkeypatch.setattr("fimserver.front.session.Energy", lambda: energy)
    return reads


def test_where_it_is_ignored_the_power_state_is_read_once_the_setting_changes(reads):
    session = Session(Config(battery="ignore"), NoLine())
    assert not session.saves_power
    session.configure(Config(battery="ignore", max_tokens=8))
    assert reads == []
    session.configure(Config(battery="save"))
    (read,) = reads
    read()
    assert session.saves_power


def test_the_power_state_is_read_before_the_first_key(reads):
    session = Session(Config(), NoLine())
    (read,) = reads
    read()
    assert session.saves_power
