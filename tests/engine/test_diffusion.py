"""The dllm route: cached against uncached, Dream and DreamOn against independent samplers."""

import dataclasses
import time

import pytest
import torch

from fimserver.engine.denoising.canvas import CachedCanvas, FullCanvas
from fimserver.engine.denoising.denoiser import Denoiser
from fimserver.engine.denoising.schedules import FOR_ADAPTERS, SCHEDULES, entropy
from fimserver.engine.denoising.tokens import Tokens
from fimserver.engine.engines import make_dllm
from fimserver.engine.load import load
from fimserver.engine.runtime import DraftContext, make_runtime
from fimserver.reasons import Reason
from fimserver.settings import Settings
from fimserver.types import Deadline, Request, Sampling
from tests.engine.test_autoregressive import CODE, REQUEST, text_of
from tests.tiny import DREAM_CANVAS, DREAMON_CANVAS, make_card, make_checkpoint


@pytest.fixture(scope="module")
def dream_folder(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("dream") / "tiny", "Dream", seed=5)


def dream_engine(folder, canvas, schedule="", like=None):
    """``like``: tokens that get nearly the weights of other ones."""
    card = make_card("Dream", loads_as="qwen2", fim=None, canvas=canvas)
    settings = Settings(schedule=schedule)
    loaded = load(card, folder, torch.device("cpu"))
    with torch.no_grad():
        for name, token in (like or {}).items():
            head = loaded.model.lm_head.weight
            head[loaded.vocabulary.special(name)] = 1.05 * head[token]
    return make_dllm(DraftContext(make_runtime(loaded, settings), settings))


class UncachedCanvas(CachedCanvas):
    """The same canvas with everything computed again at every step."""

    def predicting(self, slots):
        self.cache.clear()
        self.cache.prefill(self.context, Deadline(), want_logits=False)
        return CachedCanvas.predicting(self, slots)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES.keys() - FOR_ADAPTERS))
def test_cached_equals_uncached_on_nano(schedule, nano):
    runtime = nano.runtime(nano.card("dllm"))
    engine = make_dllm(DraftContext(runtime, Settings(schedule=schedule)))
    for cut, temperature in ((0, 0.0), (60, 0.0), (90, 0.7), (150, 0.0)):
        request = Request(
            CODE[:cut],
            CODE[cut + 10 :],
            sampling=Sampling(max_tokens=40, temperature=temperature, seed=cut, stop="none"),
        )
        cached = text_of(engine, request)
        original = engine.open_canvas
        engine.open_canvas = lambda r, original=original: UncachedCanvas(runtime.cache, original(r).context)
        assert text_of(engine, request) == cached
        engine.open_canvas = original


def test_switching_routes_on_one_prompt_reuses_the_whole_prompt(nano):
    ar, dllm = nano.engine("ar"), nano.engine("dllm")
    list(ar.complete(REQUEST, Deadline()))
    canvas = dllm.open_canvas(REQUEST)
    assert canvas.open(Deadline())
    assert canvas.forwards == 0


def test_the_other_route_in_between_changes_nothing(nano):
    ar, dllm = nano.engine("ar"), nano.engine("dllm")
    alone = text_of(ar, REQUEST), text_of(dllm, REQUEST)
    assert (text_of(ar, REQUEST), text_of(dllm, REQUEST)) == alone


def dreamon_reference(model, left, right, start, limit, tokens, request):
    """DreamOn's loop over a tensor of fixed size with a dead tail, written from the paper's code description."""
    mask, expand, delete = tokens.mask, tokens.expand, tokens.delete
    generator = torch.Generator().manual_seed(request.sampling.seed)
    x = left + [mask] * start + right
    tail = limit - start
    length, budget, history = start, limit, []
    for _ in range(256):
        full = torch.tensor([x + [mask] * tail])
        seen = torch.tensor([[1] * len(x) + [0] * tail])
        logits = model(input_ids=full, attention_mask=seen, use_cache=False).logits[0]
        logits = torch.cat([logits[:1], logits[:-1]])[: len(x)]
        is_mask = torch.tensor(x) == mask
        rows = logits[is_mask].clone()
        rows[:, mask] = -torch.inf
        if length >= limit or budget == 0:
            rows[:, expand] = -1e9
        if request.sampling.temperature > 0:
            rows = rows / request.sampling.temperature
        if request.sampling.top_p < 1:
            ordered, order = rows.sort(descending=True)
            drop = ordered.softmax(-1).cumsum(-1) > request.sampling.top_p
            drop = torch.cat([torch.zeros_like(drop[:, :1]), drop[:, :-1]], 1)
            rows = rows.masked_fill(
                torch.zeros_like(drop).scatter(1, order, drop), torch.finfo(rows.dtype).min
            )
        p = rows.softmax(-1)
        if request.sampling.temperature > 0:
            p = p / p.sum(-1, keepdim=True)
            token = torch.multinomial(p, 1, True, generator=generator)[:, 0]
        else:
            token = p.argmax(-1)
        confidence = (p * (p + 1e-10).log()).sum(-1)
        best = int(confidence.argmax())
        place = int(is_mask.nonzero()[best])
        x[place] = int(token[best])
        if x[place] == delete:
            x = [delete if t == mask and i >= place else t for i, t in enumerate(x)]
            span = range(len(left), len(left) + length)
            kept = [x[i] for i in span if x[i] != delete]
            length = len(kept)
            x = left + kept + right
        elif x[place] == expand:
            x[place : place + 1] = [mask, mask]
            length += 1
            budget -= 1
        tail = max(0, limit - length)
        history.append(x[len(left) : len(left) + length])
        if mask not in history[-1]:
            break
    return history


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (0.2, 0.9), (1.0, 0.9)])
@pytest.mark.parametrize("start", [4, 16])
def test_dreamon_equals_its_reference_step_by_step(
    seed, temperature, top_p, start, dream_folder, monkeypatch
):
    # A random model hardly ever says expand or delete: make it say them often.
    like = {DREAMON_CANVAS["expand"]: 400 + seed, DREAMON_CANVAS["delete"]: 500 + 3 * seed}
    engine = dream_engine(dream_folder, DREAMON_CANVAS | {"initial_tokens": start}, like=like)
    model = engine.network.whole.model
    request = REQUEST.with_sampling(temperature=temperature, top_p=top_p, seed=seed)
    canvas = engine.open_canvas(request)
    denoiser = Denoiser(engine.tokens, entropy(), 24)
    ours = [list(state.slots) for state in denoiser.run(canvas.predict, start, request, Deadline())]
    theirs = dreamon_reference(model, canvas.left, canvas.right, start, 24, engine.tokens, request)
    assert ours == theirs


def test_dream_loads_strictly_and_decodes_deterministically(dream_folder):
    first, second = dream_engine(dream_folder, DREAM_CANVAS), dream_engine(dream_folder, DREAM_CANVAS)
    for temperature in (0.0, 0.5):
        request = REQUEST.with_sampling(temperature=temperature)
        assert text_of(first, request) == text_of(second, request) != ""


def test_a_full_canvas_sees_its_suffix_and_shifts(dream_folder):
    engine = dream_engine(dream_folder, DREAM_CANVAS)
    mask = engine.tokens.mask
    near = FullCanvas(engine.network, [300, 301], [302], shift=True).predict([mask] * 3)
    far = FullCanvas(engine.network, [300, 301], [303], shift=True).predict([mask] * 3)
    assert not torch.equal(near[0], far[0])
    whole = engine.network.whole.model(input_ids=torch.tensor([[300, 301, mask, mask, mask, 302]])).logits[0]
    torch.testing.assert_close(near, whole[1:4])


def test_search_finds_a_length_and_decodes(dream_folder):
    engine = dream_engine(dream_folder, DREAM_CANVAS | {"length": "search"})
    chunks = list(engine.complete(REQUEST, Deadline()))
    assert chunks[-1].reason is Reason.END
    assert 1 <= chunks[-1].tokens <= 24


def test_an_end_token_takes_the_masks_on_its_right_along():
    tokens = Tokens(mask=0, end=1, expand=None, delete=None, forbidden=(0,))

    def predict(slots):
        logits = torch.zeros(len(slots), 8)
        logits[:, 5] = 1.0
        logits[2, 1] = 9.0
        return logits

    run = Denoiser(tokens, SCHEDULES["fixed"](), 6).run(predict, 6, Request("", ""), Deadline())
    states = [list(state.slots) for state in run]
    assert states[1] == [5, 5, 0, 0, 0, 0]
    assert states[-1] == [5, 5, 1, 1, 1, 1]
    assert len(states) == 3


def test_ends_far_to_the_right_wait_for_the_leftmost_mask():
    """However likely an end is at the right edge, slots left of it are filled first."""
    tokens = Tokens(mask=0, end=1, expand=None, delete=None, forbidden=(0,))

    def predict(slots):
        logits = torch.zeros(len(slots), 8)
        logits[3:, 1] = 50.0
        logits[:3, 5] = 1.0
        return logits

    run = Denoiser(tokens, SCHEDULES["threshold"](), 6).run(predict, 6, Request("", ""), Deadline())
    states = [list(state.slots) for state in run]
    assert [s.count(1) for s in states] == [0, 0, 0, 3]
    assert states[-1] == [5, 5, 5, 1, 1, 1]


def test_there_is_no_end_left_of_a_word():
    tokens = Tokens(mask=0, end=1, expand=None, delete=None, forbidden=(0,))

    def predict(slots):
        logits = torch.zeros(len(slots), 8)
        logits[:, 1] = 3.0
        logits[4, 1], logits[4, 6] = -3.0, 9.0
        logits[:, 5] = 2.0
        return logits

    run = Denoiser(tokens, SCHEDULES["fixed"](), 6).run(predict, 6, Request("", ""), Deadline())
    states = [list(state.slots) for state in run]
    assert states[-1] == [5, 5, 5, 5, 6, 1]


def test_a_long_middle_goes_on_in_further_blocks(nano, monkeypatch):
    """No end in a block: the block becomes context and the next one follows."""
    engine = nano.engine("dllm")
    end = engine.tokens.end
    original = CachedCanvas.predicting

    def never_ends(self, slots):
        logits = (yield from original(self, slots)).clone()
        logits[:, end] = -torch.inf
        return logits

    monkeypatch.setattr(CachedCanvas, "predicting", never_ends)
    chunks = list(
        engine.complete(
            REQUEST.with_sampling(max_tokens=40),
            Deadline(),
        )
    )
    assert chunks[-1].tokens == 40
    assert chunks[-1].reason is Reason.LENGTH


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_every_logit_of_a_further_block_is_that_of_an_empty_cache(temperature, nano, monkeypatch):
    """Block after block with ends forbidden: each pass gives the same bits as with everything computed again."""
    end = nano.engine("dllm").tokens.end
    original = CachedCanvas.predicting
    compared = 0

    def compare(self, slots):
        nonlocal compared
        logits = (yield from original(self, slots)).clone()
        self.cache.clear()
        self.cache.prefill(self.context, Deadline(), want_logits=False)
        assert torch.equal((yield from original(self, slots)), logits)
        compared += len(self.context) > start
        logits[:, end] = -torch.inf
        return logits

    start = len(nano.engine("dllm").open_canvas(REQUEST).context)
    monkeypatch.setattr(CachedCanvas, "predicting", compare)
    request = REQUEST.with_sampling(max_tokens=40, temperature=temperature)
    list(nano.engine("dllm").complete(request, Deadline()))
    assert compared  # how many passes a further block takes is up to the weights


def test_a_short_limit_cuts_a_block_and_does_not_shrink_it(nano):
    engine = nano.engine("dllm")
    short = list(
        engine.complete(
            REQUEST.with_sampling(max_tokens=3),
            Deadline(),
        )
    )
    assert short[-1].tokens <= 3
    assert all(len(c.canvas) <= engine.canvas_card.block_tokens for c in short)


def test_text_only_ever_grows_and_equals_the_settled_slots(nano):
    text = ""
    for chunk in nano.engine("dllm").complete(REQUEST, Deadline()):
        text += chunk.text
        if chunk.canvas:
            settled = []
            for slot in chunk.canvas:
                if slot.masked:
                    break
                settled.append(slot.text)
            assert text == "".join(settled)


def test_deadline_and_cancel_keep_what_is_good(nano, monkeypatch):
    engine = nano.engine("dllm")
    endless = dataclasses.replace(engine.tokens, forbidden=(*engine.tokens.forbidden, engine.tokens.end))
    monkeypatch.setattr(engine, "tokens", endless)  # whatever the weights think, it goes on
    late = list(engine.complete(REQUEST, Deadline(expires_s=time.monotonic())))
    assert [(c.reason, c.text, c.forwards) for c in late] == [(Reason.DEADLINE, "", 0)]
    deadline, steps = Deadline(), []
    for chunk in engine.complete(REQUEST, deadline):
        steps.append(chunk)
        deadline.cancelled.set()
    assert steps[-1].reason is Reason.CANCELLED
    assert steps[-1].forwards == steps[0].forwards


def test_special_tokens_never_come_out(nano):
    engine = nano.engine("dllm")
    for seed in range(6):
        request = REQUEST.with_sampling(temperature=2.0, seed=seed, max_tokens=16)
        for route in (engine, nano.engine("ar")):
            text = text_of(route, request)
            assert not any(name in text for name in engine.vocabulary.specials)
