"""The route of a document's turn, and when the other route is asked, with a fake clock."""

import asyncio

import pytest

from fimserver.front.config import Config
from fimserver.front.documents.mirror import Document, Position
from fimserver.front.feedback.live_ab import (
    BLOCK_S,
    MAX_SHADOWS,
    QUIET_S,
    SHADOW_S,
    LiveComparison,
    RouteTurn,
    Shadows,
)
from fimserver.front.gate import arrive
from fimserver.front.session import Session
from fimserver.reasons import Reason
from fimserver.types import Decision
from fimserver.wire import Answer, CompletionBody, EditorHints, Middle, Usage

URI = "file:///work/a.py"


class Clock:
    """A fake clock in Unix seconds."""

    def __init__(self, now=BLOCK_S * 1000.0):
        self.now = now

    def __call__(self):
        return self.now


def turns(seed, documents=1, blocks=400):
    clock = Clock()
    trial = LiveComparison("blocks", seed, clock)
    found = []
    for _ in range(blocks):
        found += [trial.turn(f"{number:x}").route for number in range(documents)]
        clock.now += BLOCK_S
    return found


def test_turns_are_seeded():
    assert turns(1) == turns(1)
    assert turns(1) != turns(2)


@pytest.mark.parametrize("seed", range(5))
def test_either_route_has_half_of_the_turns(seed):
    share = turns(seed, documents=5).count("ar") / 2000
    assert abs(share - 0.5) < 0.05  # more than four standard errors


def test_documents_take_turns_of_their_own():
    routes = turns(0, documents=2)
    assert {(a, b) for a, b in zip(routes[::2], routes[1::2], strict=True)} == {
        ("ar", "ar"), ("ar", "dllm"), ("dllm", "ar"), ("dllm", "dllm"),
    }  # fmt: skip


def test_a_turn_lasts_for_its_block():
    clock = Clock()
    trial = LiveComparison("shadow", 0, clock)
    first = trial.turn("d")
    assert first.until == first.block * BLOCK_S + BLOCK_S
    clock.now += BLOCK_S - 0.1
    assert trial.turn("d") == first
    clock.now += 0.2
    assert trial.turn("d").block == first.block + 1


def route(session):
    """The route of a request that arrives now."""
    document = Document(URI, "python", 1, "x = ")
    return arrive(session, document, Position(0, 4), invoked=False).route


def test_the_first_request_of_each_block_and_document_is_marked():
    clock = Clock()
    trial = LiveComparison("blocks", 0, clock)
    seen = [trial.is_first(document, trial.turn(document)) for document in ("a", "a", "b", "a")]
    clock.now += BLOCK_S
    seen.append(trial.is_first("a", trial.turn("a")))
    assert seen == [True, False, True, False, True]


def test_without_a_trial_nobody_has_a_turn():
    assert LiveComparison().turn("d") is None


@pytest.mark.parametrize(
    ("config", "has_turn"),
    [
        (Config(), False),
        (Config(ab="blocks"), True),
        (Config(ab="shadow"), True),
        (Config(ab="blocks", model="ar"), False),
        (Config(ab="shadow", model="dllm"), False),
    ],
)
def test_what_the_user_wants_comes_before_a_turn(config, has_turn):
    session = Session(config, None)
    assert (session.turn(URI) is not None) is has_turn
    assert route(session) == (session.turn(URI).route if has_turn else config.model)


def test_a_comparison_is_switched_on_and_off_while_the_window_is_open():
    async def run():
        session = Session(Config(), None)
        routes = [route(session)]
        for ab in ("blocks", "off"):
            session.configure(Config(ab=ab))
            routes.append(route(session))
        return routes

    assert [route in {"ar", "dllm"} for route in asyncio.run(run())] == [False, True, False]


@pytest.mark.parametrize(("served", "explained"), [("ar", True), ("dllm", False)])
def test_the_turn_is_the_reason_for_the_route_where_it_was_served(served, explained):
    usage = Usage(
        route=served, model="nano", reason=Reason.END, decision=Decision(served, "asked for", bucket=3)
    )
    said = RouteTurn("ar", 7, 8 * BLOCK_S, "blocks").explained(usage).decision
    assert said.why.startswith("A/B: this document has ar until ") is explained
    assert (said.policy, said.propensity, said.bucket) == (("blocks", 0.5, 3) if explained else ("", 1.0, 3))


# ---------------------------------------------------------------- shadows


class Quiet:
    """A host, a clock, and a user who is idle from ``since`` on."""

    def __init__(self, reasons=(), since=0.0):
        self.now, self.since, self.asked, self.judged = 0.0, since, [], []
        self._reasons = list(reasons)
        self.shadows = Shadows(self._ask, lambda: self.now - self.since, self._sleep, lambda: self.now)

    async def _sleep(self, seconds):
        self.now += seconds
        await asyncio.sleep(0)

    async def _ask(self, body, _deadline_ms):
        self.asked.append((self.now, body))
        reason = self._reasons.pop(0) if self._reasons else Reason.END
        if reason is Reason.NO_HOST:
            return Answer(reason=reason)
        return Answer(middles=(Middle(text="x", usage=Usage(route="ar", model="nano", reason=reason)),))

    def put(self, prompt="a"):
        body = CompletionBody(prompt=prompt, n=3, fimserver=EditorHints(route="dllm"))
        self.shadows.put(body, "ar", lambda answer: self.judged.append((prompt, answer)), 2000)

    async def end(self):
        await asyncio.wait_for(self.shadows._task, 5)


def test_the_other_route_is_asked_the_same_as_idle_work():
    async def run():
        quiet = Quiet()
        quiet.put()
        await quiet.end()
        return quiet

    quiet = asyncio.run(run())
    ((_, body),) = quiet.asked
    assert (body.prompt, body.n, body.fimserver.route, body.fimserver.idle) == ("a", 1, "ar", True)
    assert [prompt for prompt, _ in quiet.judged] == ["a"]


def test_nothing_is_asked_until_the_user_was_quiet_for_a_while():
    async def run():
        quiet = Quiet(since=30.0)
        quiet.put()
        await quiet.end()
        return quiet

    ((at, _),) = asyncio.run(run()).asked
    assert at >= 30.0 + QUIET_S


def test_a_user_who_never_rests_is_not_kept_from_anything():
    async def run():
        quiet = Quiet(since=SHADOW_S + 1)
        quiet.put()
        await quiet.end()
        return quiet

    assert asyncio.run(run()).asked == []


@pytest.mark.parametrize(
    ("reasons", "asked", "judged"),
    [
        ((Reason.SUPERSEDED, Reason.CANCELLED), 3, 1),
        ((Reason.SUPERSEDED,) * 99, int(SHADOW_S), 0),
        ((Reason.NO_HOST,), 1, 0),
    ],
)
def test_one_that_had_to_yield_is_asked_again_while_it_is_of_use(reasons, asked, judged):
    async def run():
        quiet = Quiet(reasons)
        quiet.put()
        await quiet.end()
        return quiet

    quiet = asyncio.run(run())
    assert len(quiet.judged) == judged
    assert len(quiet.asked) == pytest.approx(asked, abs=2 if asked > 5 else 0)


def test_few_wait_and_the_oldest_are_given_up():
    async def run():
        quiet = Quiet(since=3.0)
        for number in range(MAX_SHADOWS + 2):
            quiet.put(str(number))
        await quiet.end()
        return quiet

    assert [prompt for prompt, _ in asyncio.run(run()).judged] == ["2", "3", "4", "5"]


def test_what_was_stopped_is_not_asked():
    async def run():
        quiet = Quiet(since=5.0)
        quiet.put()
        quiet.shadows.stop()
        await asyncio.sleep(0)
        return quiet

    assert asyncio.run(run()).asked == []
