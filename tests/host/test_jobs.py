"""One request on the engines: every choice ends with a reason, whatever happens."""

import logging
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fimserver.engine import faults
from fimserver.errors import CardError, InputError, LoadError, ModelMissingError, NonFiniteError
from fimserver.host.fake import FakeEngines
from fimserver.host.job import DeviceLostError, Job
from fimserver.host.jobs import _until_stop, run_job
from fimserver.host.routing.length_model import expected
from fimserver.host.routing.router import Router
from fimserver.reasons import Reason
from fimserver.types import Deadline, Features, Request, Sampling


class PanicException(BaseException):
    """What a panic of Rust looks like: no ``Exception``."""


def job(**fields):
    given = {
        "request": Request("a", "b", sampling=Sampling(seed=5)),
        "pin": "ar",
        "deadline": Deadline(),
    } | fields
    return Job(key=("s", "d"), sink=lambda _: None, **given)


def said(*steps):
    return FakeEngines(lambda _request, _route: iter(steps))


def run(engines, **fields):
    """Text, reason and error of every choice."""
    pieces = list(run_job(engines, job(**fields), Router()))
    ends = [piece for piece in pieces if piece.usage]
    assert [end.index for end in ends] == list(range(len(ends)))
    return [("".join(p.text for p in pieces if p.index == e.index), e.usage.reason, e.error) for e in ends]


def test_pieces_and_then_what_it_took():
    *texts, last = run_job(said("x", "y"), job(), Router())
    assert [piece.text for piece in texts] == ["x", "y"]
    assert all(piece.usage is None for piece in texts)
    usage = last.usage
    assert (usage.route, usage.model, usage.reason, usage.tokens, usage.forwards) == (
        "ar",
        "fake",
        Reason.END,
        2,
        2,
    )
    assert usage.decision.why == "asked for"
    assert 0 < usage.ttft_ms <= usage.total_ms
    assert usage.queue_ms >= 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModelMissingError("get it"), Reason.NO_MODEL),
        (LoadError("get it"), Reason.NO_MODEL),
        (CardError("get it"), Reason.NO_MODEL),
        (InputError("get it"), Reason.BAD_INPUT),
        (NonFiniteError("get it"), Reason.NON_FINITE),
        (ValueError("canary"), Reason.FAILED),
        (KeyError("canary"), Reason.FAILED),
        (PanicException("canary"), Reason.FAILED),
        (MemoryError("canary"), Reason.OUT_OF_MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory canary"), Reason.OUT_OF_MEMORY),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory canary"), Reason.OUT_OF_MEMORY),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value,
)
def test_each_failure_has_its_name_and_quotes_only_ourselves(error, reason, caplog):
    ((text, got, message),) = run(said("x", error))
    assert (text, got) == ("x", reason)
    assert message
    assert "canary" not in message + caplog.text
    foreign = "get it" not in str(error)
    assert bool(caplog.records) is foreign
    assert all(record.exc_info is None and record.levelno == logging.ERROR for record in caplog.records)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(2)], ids=repr)
@pytest.mark.parametrize("place", ["complete", "num_uncached_tokens", "warm"])
def test_the_end_of_the_process_is_not_a_failure_of_the_job(error, place, monkeypatch):
    def end(*_):
        raise error

    monkeypatch.setattr(f"fimserver.host.fake.FakeEngine.{place}", end)
    with pytest.raises(type(error)):
        run(said("x"), pin="auto", warm=place == "warm")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no"), MemoryError()], ids=repr)
def test_out_of_memory_is_tried_once_more_with_caches_emptied(error, monkeypatch):
    events, attempts = [], iter([[error], ["x"]])
    monkeypatch.setattr(faults, "free_memory", lambda: events.append("freed"))

    def script(_request, _route):
        events.append("asked")
        return iter(next(attempts))

    assert run(FakeEngines(script)) == [("x", Reason.END, "")]
    assert events == ["asked", "freed", "asked"]


def test_out_of_memory_twice_is_said():
    engines = said(torch.OutOfMemoryError("no"))
    ((text, reason, _),) = run(engines)
    assert (text, reason) == ("", Reason.OUT_OF_MEMORY)
    assert len(engines.asked) == 2


def test_text_is_never_said_twice():
    engines = said("x", torch.OutOfMemoryError("no"))
    ((text, reason, _),) = run(engines)
    assert (text, reason) == ("x", Reason.OUT_OF_MEMORY)
    assert len(engines.asked) == 1


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: an illegal memory access"), RuntimeError("cuBLAS failed")], ids=repr
)
def test_a_broken_device_ends_the_choice_and_then_the_process(error):
    pieces, running = [], run_job(said("x", error), job(choices=3), Router())
    with pytest.raises(DeviceLostError):
        pieces.extend(iter(lambda: next(running), None))
    assert [piece.text for piece in pieces] == ["x", ""]
    assert pieces[-1].usage.reason is Reason.FAILED


def test_a_failed_choice_leaves_the_others():
    def script(_request, route):
        return iter(["x"] if route == "ar" else [NonFiniteError("nan")])

    got = run(FakeEngines(script), pin="auto", choices=2)
    assert [(text, reason) for text, reason, _ in got] == [("x", Reason.END), ("", Reason.NON_FINITE)]


@pytest.mark.parametrize(
    ("pin", "temperature", "asked"),
    [
        ("auto", 0.0, [("ar", 0.0, 5), ("dllm", 0.0, 5), ("ar", 0.6, 7), ("ar", 0.6, 8)]),
        ("ar", 0.0, [("ar", 0.0, 5), ("ar", 0.6, 6), ("ar", 0.6, 7), ("ar", 0.6, 8)]),
        ("dllm", 1.5, [("dllm", 1.5, 5), ("dllm", 1.5, 6), ("dllm", 1.5, 7), ("dllm", 1.5, 8)]),
    ],
)
def test_candidates_differ_in_route_or_seed(pin, temperature, asked):
    seen = []

    def script(request, route):
        seen.append((route, request.sampling.temperature, request.sampling.seed))
        return iter(["x"])

    assert (
        len(
            run(
                FakeEngines(script),
                pin=pin,
                request=Request("a", "b", sampling=Sampling(temperature=temperature, seed=5)),
                choices=4,
            )
        )
        == 4
    )
    assert seen == asked


def test_no_further_candidate_is_begun_when_time_is_up():
    deadline = Deadline()

    def script(_request, _route):
        yield "x"
        deadline.cancelled.set()
        yield "y"

    assert run(FakeEngines(script), deadline=deadline, choices=3) == [("xy", Reason.CANCELLED, "")]


@pytest.mark.parametrize(("superseded", "reason"), [(True, Reason.SUPERSEDED), (False, Reason.CANCELLED)])
@pytest.mark.parametrize("warm", [True, False])
def test_who_stopped_it_is_said(superseded, reason, warm):
    work = job(warm=warm)
    work.cancel(superseded=superseded)
    *_, last = run_job(said("x", "y"), work, Router())
    assert last.usage.reason is reason
    assert last.usage.tokens <= 1


def test_warming_says_nothing_and_generates_nothing():
    engines = said("x")
    assert run(engines, warm=True) == [("", Reason.END, "")]
    assert [len(engines.warmed), len(engines.asked)] == [1, 0]


@pytest.mark.parametrize(
    ("steps", "stops", "text", "reason"),
    [
        (["ab", "cd"], [], "abcd", Reason.END),
        (["ab", "cd"], ["c"], "ab", Reason.BLOCK),
        (["ab", "cd"], ["bc"], "a", Reason.BLOCK),
        (["a", "\n", "\n", "b"], ["\n\n"], "a", Reason.BLOCK),
        (["a", "\n", "b"], ["\n\n"], "a\nb", Reason.END),
        (["a", "\n"], ["\n\n"], "a\n", Reason.END),
        (["abcd"], ["d", "b"], "a", Reason.BLOCK),
        (["a"], ["a"], "", Reason.BLOCK),
        (["aab"], ["ab"], "a", Reason.BLOCK),
        (["a", "a", "b"], ["ab"], "a", Reason.BLOCK),
    ],
)
def test_stop_strings_are_no_part_of_the_middle(steps, stops, text, reason):
    assert run(said(*steps), stops=tuple(stops)) == [(text, reason, "")]


def test_an_engine_is_let_go_at_a_stop_string():
    ended = []

    def script(_request, _route):
        try:
            yield from ("a", "b", "c")
        finally:
            ended.append(True)

    engines = FakeEngines(script)
    assert [piece.text for piece in run_job(engines, job(stops=("b",)), Router())] == ["a", ""]
    assert ended == [True]


@given(
    st.text("ab\n", max_size=12),
    st.text("ab\n", min_size=1, max_size=4),
    st.lists(st.integers(1, 4), min_size=12),
)
def test_a_stop_string_is_found_however_the_text_is_cut(text, stop, cuts):
    said_, held, stopped, rest = "", "", False, text
    for cut in cuts:
        added, held, stopped = _until_stop(held + rest[:cut], (stop,))
        said_, rest = said_ + added, rest[cut:]
        if stopped:
            break
    assert stopped is (stop in text)
    assert said_ + held == text.split(stop)[0]


class Broken(FakeEngines):
    """A host of which one route cannot be loaded."""

    def __init__(self, route, script=None):
        super().__init__(script or (lambda _request, route: iter([route])))
        self.broken, self.loads = route, 0

    def engine(self, route):
        if route == self.broken:
            self.loads += 1
            raise LoadError("get it")
        return super().engine(route)


@pytest.mark.parametrize(("broken", "serves"), [("dllm", "ar"), ("ar", "dllm")])
def test_when_one_route_cannot_be_loaded_the_other_serves(broken, serves):
    engines, router = Broken(broken), Router()
    for _ in range(3):
        *_, last = run_job(engines, job(pin="auto"), router)
        assert (last.usage.route, last.usage.reason) == (serves, Reason.END)
        assert "cannot run here: get it" in last.usage.decision.why
    assert engines.loads == 1  # it is not tried again with every key


class CoderAndStandIn(Broken):
    """A coder with nano as the stand-in, and a record of the requested engines."""

    def __init__(self, broken=""):
        super().__init__(broken)
        self.wanted = []

    def served(self):
        return {"ar": "qwen2.5-coder-0.5b-instruct", "dllm": "nano"}

    def engine(self, route):
        self.wanted.append(route)
        return super().engine(route)


def test_a_stand_in_is_not_loaded_while_the_coder_can_run():
    engines = CoderAndStandIn()
    *_, last = run_job(engines, job(pin="auto"), Router())
    assert last.usage.route == "ar"
    assert set(engines.wanted) == {"ar"}
    *_, last = run_job(engines, job(pin="dllm"), Router())
    assert last.usage.route == "dllm"


def test_a_stand_in_serves_where_the_coder_cannot_run():
    engines, router = CoderAndStandIn("ar"), Router()
    for _ in range(3):
        *_, last = run_job(engines, job(pin="auto"), router)
        assert (last.usage.route, last.usage.reason) == ("dllm", Reason.END)
    assert engines.loads == 1


def test_a_route_that_was_asked_for_is_not_replaced():
    ((_, reason, message),) = run(Broken("dllm"), pin="dllm")
    assert (reason, message) == (Reason.NO_MODEL, "get it")


def test_two_routes_that_cannot_run_are_a_reason_and_no_loop(monkeypatch):
    engines = Broken("ar")
    monkeypatch.setattr(engines, "engine", lambda _route: (_ for _ in ()).throw(LoadError("get it")))
    router = Router()
    for _ in range(2):
        *_, last = run_job(engines, job(pin="auto"), router)
        assert last.usage.reason is Reason.NO_MODEL


def test_a_route_that_fails_before_it_said_anything_is_replaced_for_this_answer_and_the_next():
    def script(_request, route):
        return iter([NonFiniteError("NaN")] if route == "dllm" else ["x"])

    engines, router = FakeEngines(script), Router("length")
    for _ in range(2):
        pieces = list(run_job(engines, job(request=Request("f(", "\n"), pin="auto"), router))
        assert "".join(piece.text for piece in pieces) == "x"
        assert pieces[-1].usage.route == "ar"
        assert sum(piece.usage is not None for piece in pieces) == 1


def test_what_was_said_is_not_taken_back_by_another_route():
    engines = FakeEngines(lambda _request, _route: iter(["half", NonFiniteError("NaN")]))
    pieces = list(run_job(engines, job(request=Request("f(", "\n"), pin="auto"), Router("length")))
    assert "".join(piece.text for piece in pieces) == "half"
    assert pieces[-1].usage.reason is Reason.NON_FINITE


def test_every_finished_choice_teaches_the_router_and_a_warm_up_does_not():
    router = Router()
    list(run_job(said("x", "y"), job(warm=True), router))
    assert router.costs.unsaved == 0
    list(run_job(said("x", "y"), job(choices=3), router))
    assert router.costs.unsaved == 3


def test_a_tokenizer_that_panics_while_the_route_is_chosen_ends_as_its_choice_does(monkeypatch, caplog):
    engines = said(PanicException("canary"))
    monkeypatch.setattr(
        "fimserver.host.fake.FakeEngine.num_uncached_tokens",
        lambda *_: (_ for _ in ()).throw(PanicException("canary")),
    )
    ((_, reason, _),) = run(engines, pin="auto")
    assert reason is Reason.FAILED
    assert "canary" not in caplog.text


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(24, "canary"), "OSError: see the log of the host"),
        (InputError("length.json cannot be read"), "length.json cannot be read"),
    ],
)
def test_a_route_that_cannot_be_chosen_is_the_end_of_this_request_alone(error, says, caplog):
    work = job(request=Request("x = ", "\n", features=FEATURES))
    failing = Router(expect=lambda *_: (_ for _ in ()).throw(error))
    (end,) = run_job(said("x"), work, failing)
    assert (end.usage.reason, end.error) == (Reason.FAILED, says)
    assert "canary" not in caplog.text


FEATURES = Features("python", "code", *[False] * 2, True, *[False] * 3, 0, 0, False, 1)


class Expanding(FakeEngines):
    """Engines whose canvas expands and deletes, with a card that starts it at 64 slots."""

    def __init__(self, length, script=None):
        super().__init__(script or (lambda _request, _route: iter(["x"])))
        self.canvas = SimpleNamespace(length=length, initial_tokens=64)

    def engine(self, route):
        engine = super().engine(route)
        engine.card = SimpleNamespace(name="fake", canvas=self.canvas)
        return engine


@pytest.mark.parametrize("text", ["x = ", "os.listdir(", "def f():\n    "])
def test_a_canvas_that_expands_starts_as_its_card_says(text):
    """Length features, as an editor sends them, would start it at 4 to 24 slots."""
    asked = Request(text, ")\n", features=FEATURES, sampling=Sampling(max_tokens=100))
    engines = Expanding("expand")
    run(engines, request=asked, pin="dllm")
    assert (engines.asked[0].canvas_tokens, engines.asked[0].sampling.max_tokens) == (64, 100)
    for length in ("search", "fixed", "end"):
        engines = Expanding(length)
        run(engines, request=asked, pin="dllm")
        assert 0 < engines.asked[0].canvas_tokens < 64


def test_a_limit_of_the_caller_holds_for_a_canvas_that_expands():
    engines = Expanding("expand")
    run(
        engines,
        request=Request("x = ", ")\n", features=FEATURES, sampling=Sampling(max_tokens=7)),
        pin="dllm",
    )
    assert engines.asked[0].sampling.max_tokens == 7


def test_the_length_is_predicted_once_and_the_job_stays_as_it_was(monkeypatch):
    predicted = []

    def expect(features, request):
        predicted.append(request)
        return expected(features, request)

    work = job(request=Request("x = ", "\n", features=FEATURES), choices=3, pin="auto")
    before = work.request
    list(run_job(said("x"), work, Router(expect=expect)))
    assert predicted == [before]
    assert work.request is before
