"""Passes of several requests in one: each has the bits that it has alone."""

import itertools

import pytest
import torch

from fimserver.engine.autoregressive import Autoregressive
from fimserver.engine.engines import ModelPool, make_ar
from fimserver.engine.forward.passes import Pass, rows_alike, run_together
from fimserver.engine.runtime import DraftContext
from fimserver.engine.speculation.drafts import RandomDrafter
from fimserver.reasons import Reason
from fimserver.settings import Settings
from fimserver.types import Chunk, Deadline, Request, Sampling

TEXTS = (
    ("def add(a, b):\n    return ", "\n\n\ndef sub(a, b):\n    return a - b\n"),
    ("import os\n\n\ndef read(path):\n    with open(", "\n    return text\n"),
    ("class Point:\n    def __init__(self, x, y):\n        self.x = x\n        ", "\n"),
    ("for i in range(10):\n    print(", ")\n" * 40),
    ("numbers = [1, 2, 3]\ntotal = ", "\nprint(total)\n"),
)
SAMPLINGS = (Sampling(24, stop="none"), Sampling(24, temperature=0.8, seed=5, stop="none"))
REQUESTS = [Request(*text, sampling=sampling) for text in TEXTS for sampling in SAMPLINGS]


def alone(engine, request):
    engine_text = list(engine.complete(request, Deadline()))
    return "".join(chunk.text for chunk in engine_text), engine_text[-1]


def together(runs):
    """The chunks of several runs of steps, their passes run as one; a new one joins after each round."""
    chunks = [[] for _ in runs]
    waiting, running = list(enumerate(runs)), {}
    companies = []
    while waiting or running:
        if waiting:
            number, run = waiting.pop(0)
            running[number] = (run, None)
        passes = {}
        for number, (run, _) in list(running.items()):
            step = next(run, None)
            while isinstance(step, Chunk):
                chunks[number].append(step)
                step = next(run, None)
            if step is None:
                del running[number]
            else:
                assert isinstance(step, Pass)
                passes[number] = step
        run_together(list(passes.values()))
        companies += [each.company for each in passes.values()]
    return chunks, companies


def said(chunks):
    """Text, tokens, passes, confidence, and how it ended."""
    last = chunks[-1]
    return "".join(chunk.text for chunk in chunks), last.tokens, last.confidence, last.reason


@pytest.fixture
def network(nano):
    found = nano.runtime(nano.card("ar")).network
    if not found.joins:
        pytest.skip("the products of this machine depend on the number of rows")
    return found


@pytest.mark.usefixtures("network")
@pytest.mark.parametrize("drafter", ["none", "ngram", "diffusion:self", "heads"])
def test_middles_side_by_side_are_those_alone(drafter, nano):
    engine = make_ar(DraftContext(nano.runtime(nano.card("ar")), Settings(drafter=drafter)))
    wanted = [said(list(engine.complete(request, Deadline()))) for request in REQUESTS]
    engine.cache.clear()
    chunks, companies = together([engine.steps(request, Deadline()) for request in REQUESTS])
    assert [said(each) for each in chunks] == wanted
    assert max(companies) > 1


@pytest.mark.usefixtures("network")
def test_drafts_of_any_kind_do_not_change_what_runs_beside_them(nano):
    engine = nano.engine("ar")
    assert isinstance(engine, Autoregressive)
    plain = make_ar(DraftContext(nano.runtime(nano.card("ar")), Settings(drafter="none")))
    wanted = [said(list(plain.complete(request, Deadline()))) for request in REQUESTS]
    noisy = make_ar(DraftContext(nano.runtime(nano.card("ar")), Settings(drafter="none")))
    noisy.speculation.drafters = (RandomDrafter(3, engine.cache.network.vocab_size),)
    chunks, _ = together([noisy.steps(request, Deadline()) for request in REQUESTS])
    assert [said(each) for each in chunks] == wanted


@pytest.mark.usefixtures("network")
def test_one_that_is_cancelled_leaves_and_the_others_keep_their_bits(nano):
    engine = make_ar(DraftContext(nano.runtime(nano.card("ar")), Settings(drafter="none")))
    wanted = [said(list(engine.complete(request, Deadline()))) for request in REQUESTS]
    engine.cache.clear()
    deadlines = [Deadline() for _ in REQUESTS]

    def cancelling(number):
        for count, step in enumerate(engine.steps(REQUESTS[number], deadlines[number])):
            if number == 2 and count == 5:
                deadlines[number].cancelled.set()
            yield step

    chunks, _ = together([cancelling(number) for number in range(len(REQUESTS))])
    assert chunks[2][-1].reason is Reason.CANCELLED
    others = [number for number in range(len(REQUESTS)) if number != 2]
    assert [said(chunks[number]) for number in others] == [wanted[number] for number in others]


@pytest.mark.usefixtures("network")
def test_a_pass_that_is_not_wanted_any_more_is_not_run(nano):
    engine = make_ar(DraftContext(nano.runtime(nano.card("ar")), Settings(drafter="none")))
    deadline = Deadline()
    steps = engine.steps(REQUESTS[0], deadline)
    first = next(step for step in steps if isinstance(step, Pass) and not step.reads_prompt)
    deadline.cancelled.set()
    (last,) = steps
    assert last.reason is Reason.CANCELLED
    assert not first.done


def test_a_drafter_that_keeps_one_text_has_the_engine_to_itself(nano):
    engine = make_ar(
        DraftContext(
            nano.runtime(nano.card("ar")), Settings(drafter="model"), nano.target(nano.card("ar")).other
        )
    )
    assert not engine.speculation.interleaves
    assert all(isinstance(step, Chunk) for step in engine.steps(REQUESTS[0], Deadline()))


def test_each_document_keeps_its_prompt(nano):
    engine = nano.engine("ar")
    lines = ["\n".join(f"{name}_{i} = {i * i}" for i in range(60)) for name in ("one", "two", "three")]
    requests = [Request("value = ", text, sampling=SAMPLINGS[0]) for text in lines]
    for request in requests:
        list(engine.complete(request, Deadline()))
    assert [engine.num_uncached_tokens(request) for request in requests] == [engine.cache.chunk] * len(
        requests
    )


def test_without_room_for_another_the_prompt_unused_for_longest_goes(nano):
    models = ModelPool(Settings(device="cpu", threads=1, ar_card="nano", batch=2))
    engine = models.engine("ar")
    lines = ["\n".join(f"{name}_{i} = {i * i}" for i in range(60)) for name in ("one", "two", "three")]
    first, second, third = (Request("value = ", text, sampling=SAMPLINGS[0]) for text in lines)
    for request in (first, second, first, third):
        list(engine.complete(request, Deadline()))
    assert engine.num_uncached_tokens(first) == engine.cache.chunk
    assert engine.num_uncached_tokens(second) > engine.cache.chunk


def test_what_two_texts_begin_with_is_not_read_twice(nano):
    engine = nano.engine("ar")
    suffix = "\n".join(f"value_{i} = {i * i}" for i in range(60))
    one, two = (Request(f"{name} = ", suffix, sampling=SAMPLINGS[0]) for name in ("first", "second"))
    list(engine.complete(one, Deadline()))
    wanted = [said(list(engine.complete(two, Deadline()))), said(list(engine.complete(one, Deadline())))]
    engine.cache.clear()
    got = []
    for request in (two, one):
        got.append(said(list(engine.complete(request, Deadline()))))
        assert engine.num_uncached_tokens(request) == engine.cache.chunk
    assert got == wanted


def test_products_whose_bits_depend_on_the_rows_beside_them_are_found(network, monkeypatch):
    assert rows_alike(network)
    exact = network.head

    def head(x):
        return exact(x) * (1 + 1e-6 * (len(x) % 2))

    monkeypatch.setattr(network, "head", head)
    assert not rows_alike(network)


def test_where_rows_are_not_alike_every_pass_runs_alone(nano, monkeypatch):
    engine = nano.engine("ar")
    wanted = [said(list(engine.complete(request, Deadline()))) for request in REQUESTS[:3]]
    monkeypatch.setattr(engine.cache.network, "joins", False)
    chunks, companies = together([engine.steps(request, Deadline()) for request in REQUESTS[:3]])
    assert [said(each) for each in chunks] == wanted
    assert set(companies) == {1}


@pytest.mark.usefixtures("network")
def test_no_pass_has_more_rows_than_products_were_tried_with(nano):
    cache = nano.engine("ar").cache
    ids = torch.zeros(1, 100, dtype=torch.long)
    passes = [
        Pass(cache.network, cache.prompts.take([n]).kv, ids, 0, cache.causal(0, 100), torch.arange(9))
        for n in range(5)
    ]
    run_together(passes)
    assert [each.company for each in passes] == [2, 2, 2, 2, 1]
    for each in cache.prompts._all:
        each.taken = False


def test_one_at_a_time_joins_nothing():
    models = ModelPool(Settings(device="cpu", threads=1, ar_card="nano", batch=1))
    network = models.runtime(models.card("ar")).network
    assert not network.joins
    assert models.runtime(models.card("ar")).cache.prompts.most == 1


def test_a_chunk_of_a_prompt_is_told_from_a_round(nano):
    steps = nano.engine("ar").steps(REQUESTS[0], Deadline())
    passes = [step for step in itertools.islice(steps, 8) if isinstance(step, Pass)]
    assert passes[0].reads_prompt
    assert not passes[-1].reads_prompt
    assert torch.equal(passes[-1].result(), passes[-1].result())
