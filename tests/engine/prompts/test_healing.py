"""Token healing: the prompt ends before the last token, the middle repeats it, and the user does not see it twice."""

import itertools

import pytest
import torch

from fimserver.engine.autoregressive import Autoregressive
from fimserver.engine.denoising.denoiser import CanvasState
from fimserver.engine.denoising.schedules import SCHEDULES
from fimserver.engine.diffusion import Diffusion
from fimserver.engine.prompts.healing import TokenHealing
from fimserver.engine.prompts.prompt import cut_context
from fimserver.engine.speculation.drafts import RandomDrafter, ScriptedDrafter
from fimserver.lengths import common_prefix
from fimserver.types import Deadline, Request, Sampling
from tests.engine.speculation.test_speculate import Liar, ids_of

SUFFIX = "\n\n\ndef median(values):\n    return sorted(values)[len(values) // 2]\n"
PREFIX = "import json\n\n\ndef mean(values):\n    "
ENDS = ("", "ret", "return", "return ", "return sum(", "return sum(val", "return 'é", "x = 12", "\t", "#  ")


@pytest.fixture
def engine(nano):
    made = nano.engine("ar")
    fim = made.card.fim.model_copy(update={"heal": True})
    return Autoregressive(made.card.model_copy(update={"fim": fim}), made.vocabulary, made.speculation)


@pytest.fixture
def diffusion(nano):
    made = nano.engine("dllm")
    fim = made.card.fim.model_copy(update={"heal": True})
    card = made.card.model_copy(update={"fim": fim})
    return Diffusion(card, made.vocabulary, made.network, made.cache, made.schedule)


def request_of(end, **sampling):
    return Request(PREFIX + end, SUFFIX, sampling=Sampling(max_tokens=24, stop="none", **sampling))


def text_of(engine, request):
    return "".join(chunk.text for chunk in engine.complete(request, Deadline()))


@pytest.mark.parametrize(
    ("prefix", "held"),
    [
        ("", ""),
        ("x = 1\n", ""),
        ("x = 1\r\n", ""),
        ("x = 1\r", ""),
        ("def f():\n    ", " "),
        ("return ", " "),
        ("\t\t", "\t"),
        ("x\ny", "y"),
        ("x = '\ud800", ""),
    ],
)
def test_what_is_held_back(prefix, held, engine):
    assert engine.healing.held_back(prefix) == held


@pytest.mark.parametrize("end", ENDS)
def test_prompt_and_held_text_are_the_prefix(end, engine):
    request = request_of(end)
    state = engine.decode_state(request, Deadline())
    assert engine.vocabulary.decode(state.prefix) + state.held == request.prefix
    assert state.request.prefix + state.held == request.prefix


def test_exactly_the_tokens_that_begin_with_the_text_are_allowed(engine):
    vocabulary = engine.vocabulary
    allowed = engine.healing.allowed("ret", vocabulary.largest_id + 1, torch.device("cpu"))
    for token in range(vocabulary.largest_id + 1):
        begins = vocabulary.decode([token]).startswith("ret") and token not in vocabulary.marker_ids
        assert bool(allowed[token]) == begins
    assert allowed.any()


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_the_first_token_begins_with_the_held_text_and_the_middle_does_not_show_it(end, temperature, engine):
    request = request_of(end, temperature=temperature, seed=5)
    state = engine.decode_state(request, Deadline())
    ids, _ = ids_of(engine, request)
    assert engine.vocabulary.decode(ids).startswith(state.held)
    assert text_of(engine, request) == engine.vocabulary.decode(ids)[len(state.held) :].rstrip("\ufffd")


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_drafts_and_caches_do_not_change_the_text(end, temperature, engine):
    request = request_of(end, temperature=temperature, seed=5)
    engine.cache.clear()
    plain, _ = ids_of(engine, request)
    for drafter in (ScriptedDrafter(plain), Liar(plain, 0), RandomDrafter(0, engine.vocabulary.largest_id)):
        assert ids_of(engine, request, [drafter])[0] == plain


def test_without_healing_nothing_is_held_back(nano):
    made = nano.engine("ar")
    assert made.healing is None
    assert made.decode_state(request_of("ret"), Deadline()).held == ""


def test_typing_keeps_everything_before_the_anchor(engine):
    fim = engine.card.fim.model_copy(update={"layout": "psm", "typed_after_middle": True})
    card = engine.card.model_copy(update={"fim": fim})
    healing = TokenHealing(engine.vocabulary)
    typed = "return sum(values) / len(values)"
    contexts = [
        cut_context(
            Request(PREFIX + typed[:n], SUFFIX, typed_chars=n), card, engine.vocabulary, healing=healing
        )
        for n in range(len(typed) + 1)
    ]
    for n, context in enumerate(contexts):
        assert context.prefix == contexts[0].prefix
        whole = engine.vocabulary.decode([*context.prefix, *context.typed]) + context.held
        assert whole == PREFIX + typed[:n]
    for before, after in itertools.pairwise(contexts):
        assert common_prefix(before.typed, after.typed) >= len(before.typed) - 2


@pytest.mark.parametrize("end", ENDS)
def test_a_canvas_begins_with_the_held_text_too(end, diffusion):
    request = request_of(end)
    held = diffusion.healing.held_back(request.prefix)
    chunks = list(diffusion.complete(request, Deadline()))
    view = "".join(slot.text for slot in chunks[-2].canvas)
    text = "".join(chunk.text for chunk in chunks)
    assert view.startswith(text.rstrip("\n"))
    slots = diffusion.vocabulary.encode(held + text)
    assert diffusion.vocabulary.decode(slots[:1]).startswith(held) or not held.strip()


@pytest.mark.parametrize("schedule", ["threshold", "fixed", "entropy"])
def test_every_schedule_writes_the_held_text_first(schedule, diffusion):
    made = Diffusion(
        diffusion.card, diffusion.vocabulary, diffusion.network, diffusion.cache, SCHEDULES[schedule]()
    )
    held = "ret"
    first = made.vocabulary.texts()
    seen = []
    predict = made._block

    def watched(canvas, done, request, deadline, held):
        for state in predict(canvas, done, request, deadline, held):
            if not done and isinstance(state, CanvasState):
                seen.append(state.slots[0])
            yield state

    made._block = watched
    list(made.complete(request_of("ret"), Deadline()))
    assert seen
    assert all(token == made.tokens.mask or first[token].startswith(held) for token in seen)
