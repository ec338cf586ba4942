"""A canvas adapter on the 0.5B coder, if its weights are on this machine."""

import pytest
import torch

from fimserver.cards import get_card, model_folder
from fimserver.engine.denoising.canvas import ShiftedCanvas
from fimserver.engine.engines import make_ar
from fimserver.engine.forward.adapter import CanvasAdapter, CanvasNetwork
from fimserver.engine.forward.pass_cost import PassCosts
from fimserver.engine.load import load
from fimserver.engine.runtime import DraftContext, make_runtime
from fimserver.engine.speculation.drafts import DecodeState
from fimserver.engine.speculation.lookahead import Lookahead, Outlook
from fimserver.settings import Settings
from fimserver.types import Deadline, Request, Sampling
from tests.coder import MODELS, NAME, needs_coder
from tests.engine.test_autoregressive import text_of

CARD = get_card(NAME)
PRODUCTS = {"qkv": (896, 1152), "out": (896, 896), "gate_up": (896, 9728), "down": (4864, 896)}
REQUEST = Request(
    "import json\n\n\ndef read(path):\n    with open(path) as f:\n        return ",
    "\n",
    sampling=Sampling(max_tokens=12),
)

pytestmark = needs_coder


@pytest.fixture(scope="module")
def runtime():
    return make_runtime(load(CARD, model_folder(CARD, MODELS), torch.device("cpu"), "int8"), Settings())


@pytest.fixture(scope="module")
def network(runtime):
    generator = torch.Generator().manual_seed(1)
    branches = {
        f"{layer}.{name}": (
            torch.randn(4, size_in, generator=generator) * 0.03,
            torch.randn(size_out, 4, generator=generator),
        )
        for layer in range(24)
        for name, (size_in, size_out) in PRODUCTS.items()
    }
    adapter = CanvasAdapter(
        "", (1, 2, 8, 16), (0.05, 1.0), torch.randn(896, generator=generator) * 0.02, branches
    )
    return CanvasNetwork(runtime.network, adapter, runtime.loaded.vocabulary.special("<|fim_pad|>"))


def test_text_and_logits_of_the_ar_route_do_not_notice_the_canvas(runtime, network):
    engine = make_ar(DraftContext(runtime, Settings(drafter="none")))
    prompt, text = engine.prompt(REQUEST), text_of(engine, REQUEST)
    logits = runtime.cache.prefill(prompt, Deadline(), want_logits=True).clone()
    canvas = ShiftedCanvas(runtime.cache, prompt, network, network.mask_token)
    assert canvas.open(Deadline())
    before = [t[:, : len(prompt)].clone() for i in range(24) for t in runtime.cache.kv.layer(i)]
    canvas.predict([network.mask_token] * 8)
    assert all(
        torch.equal(old, new[:, : len(prompt)])
        for old, new in zip(before, (t for i in range(24) for t in runtime.cache.kv.layer(i)), strict=True)
    )
    assert torch.equal(runtime.cache.prefill(prompt, Deadline(), want_logits=True), logits)
    assert text_of(engine, REQUEST) == text


def test_a_cached_canvas_is_an_uncached_one_to_the_bit(runtime, network):
    prompt = make_ar(DraftContext(runtime, Settings(drafter="none"))).prompt(REQUEST)
    canvas = ShiftedCanvas(runtime.cache, prompt, network, network.mask_token)
    slots = [40, 41, *[network.mask_token] * 3, 42, *[network.mask_token] * 2]
    canvas.open(Deadline())
    cached = canvas.predict(slots).clone()
    runtime.cache.clear()
    canvas.open(Deadline())
    assert torch.equal(canvas.predict(slots), cached)


def test_the_next_token_has_the_logits_of_plain_decoding_to_the_bit(runtime, network):
    prompt = make_ar(DraftContext(runtime, Settings(drafter="none"))).prompt(REQUEST)
    canvas = ShiftedCanvas(runtime.cache, prompt, network, network.mask_token)
    assert canvas.open(Deadline())
    known = []
    for token in (40, 41, 42, 43):
        known.append(token)
        decoded = runtime.cache.branches([[token]], len(prompt) + len(known) - 1)[0, -1].clone()
        slots = [*known, *[network.mask_token] * (8 - len(known))]
        assert torch.equal(canvas.predict(slots)[len(known)], decoded)


def test_the_leftmost_place_step_by_step_is_plain_decoding(runtime, network):
    """Over several blocks, whatever the adapter says about the places behind it."""
    engine = make_ar(DraftContext(runtime, Settings(drafter="none")))
    prompt, tokens = engine.prompt(REQUEST), list[int]()
    logits = runtime.cache.prefill(prompt, Deadline(), want_logits=True)
    for _ in range(20):
        tokens.append(int(logits.argmax()))
        logits = runtime.cache.branches([tokens[-1:]], len(prompt) + len(tokens) - 1)[0, -1]
    canvas = ShiftedCanvas(runtime.cache, prompt, network, network.mask_token)
    assert canvas.open(Deadline())
    found = list[int]()
    for _ in range(3):
        slots = [network.mask_token] * 8
        for place in range(8):
            slots[place] = int(canvas.predict(slots)[place].argmax())
        canvas.settle(slots)
        found += slots
    assert found[:20] == tokens


@pytest.mark.parametrize("outlook", [Outlook(8, (0,), 2), Outlook(12, (0, 1, 2), 2), Outlook(16, (1, 2), 1)])
def test_text_rows_beside_masks_have_the_bits_of_plain_decoding(runtime, network, outlook):
    """Logits, keys and values of a pass that verifies a draft and looks ahead, on exact int8 products."""
    prompt = make_ar(DraftContext(runtime, Settings(drafter="none"))).prompt(REQUEST)
    texts, start = [40, 41, 42], len(prompt)
    runtime.cache.prefill(prompt, Deadline(), want_logits=False)
    plain = torch.cat([runtime.cache.branches([[t]], start + i)[0].clone() for i, t in enumerate(texts)])
    end = start + len(texts)
    before = [t[:, :end].clone() for i in range(24) for t in runtime.cache.kv.layer(i)]
    state = DecodeState(REQUEST, prompt, [], [], lambda row, _: (int(row.argmax()), None), ids=texts[:1])
    ahead = Lookahead(runtime.cache, network)
    logits = ahead.end(state, len(texts), outlook, ahead.start(state, texts[1:], outlook))
    assert torch.equal(logits[0], plain)
    after = (t[:, :end] for i in range(24) for t in runtime.cache.kv.layer(i))
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_a_text_with_lookahead_is_the_text_without(runtime, network, monkeypatch):
    engine = make_ar(DraftContext(runtime, Settings(drafter="none")))
    request = REQUEST.with_sampling(stop="none")
    text = text_of(engine, request)
    ahead = Lookahead(runtime.cache, network)
    speculation = engine.speculation
    monkeypatch.setattr(speculation, "drafters", (ahead,))
    monkeypatch.setattr(speculation, "lookahead", ahead)
    free = PassCosts({(1, 1): 1e6, (1, 8): 1.001e6, (1, 12): 1.002e6})  # a drafter costs nothing beside it
    monkeypatch.setattr(speculation.policy, "costs", free)
    chunks = list(engine.complete(request, Deadline()))
    assert "".join(chunk.text for chunk in chunks) == text
    assert chunks[-1].drafting.drafted > 0
