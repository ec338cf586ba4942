"""Block drafters on tiny random coders in int8: cheap products give the network's logits, and texts stay as they are."""

import pytest
import torch

from fimserver.engine.autoregressive import Autoregressive
from fimserver.engine.drafters import block_window
from fimserver.engine.drafters.block_window import CANDIDATES, BlockWindow
from fimserver.engine.drafters.diffusion import DiffusionDrafter
from fimserver.engine.drafters.nets import BlockNetwork, BlockShape, save_net
from fimserver.engine.drafters.registry import make, make_drafters
from fimserver.engine.engines import make_ar
from fimserver.engine.forward.layers import bias_of
from fimserver.engine.forward.pass_cost import PassCosts
from fimserver.engine.load import load, weights_hash
from fimserver.engine.runtime import DraftContext, make_runtime
from fimserver.engine.sampling import choose
from fimserver.engine.speculation.drafts import ScriptedDrafter
from fimserver.engine.speculation.speculate import Speculation
from fimserver.engine.speculation.verify import GumbelMaxVerifier
from fimserver.errors import LoadError
from fimserver.settings import Settings
from fimserver.types import Deadline, Request, Sampling
from tests.engine.forward.test_passes import said, together
from tests.gguf_files import gguf_card, write_gguf
from tests.tiny import make_checkpoint

CPU = torch.device("cpu")
CODE = "def read(path):\n    with open(path) as file:\n        return file.read()\n\n\ndef write(path, text):\n    with open("
REQUESTS = [
    Request(
        CODE[:cut],
        CODE[cut + 9 :],
        sampling=Sampling(max_tokens=20, stop="none", temperature=temperature, seed=2),
    )
    for cut in (30, 90)
    for temperature in (0.0, 0.8)
]
FILE = "block.safetensors"


def a_network(words, *, sampler=0, window=5, scale=0.3):
    """A random network for the tiny coder; ``words``: ids, or ``None``."""
    torch.manual_seed(3)
    shape = BlockShape(
        (0, 1),
        window,
        hidden=64,
        heads=4,
        kv_heads=2,
        head_dim=16,
        mlp=48,
        words=0 if words is None else len(words),
        normed=True,
        sees_token=True,
        sampler=sampler,
    )
    net = BlockNetwork(shape).requires_grad_(False)
    for parameter in net.parameters():
        parameter.add_(torch.randn_like(parameter) * scale)
    if words is not None:
        net.words = torch.tensor(words, dtype=torch.int32)
    return net


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny coder in a GGUF file."""
    base = tmp_path_factory.mktemp("coder")
    write_gguf(make_checkpoint(base / "checkpoint", "qwen2"), base / "tiny" / "tiny.gguf")
    return base / "tiny"


@pytest.fixture(scope="module")
def runtime(folder):
    return a_runtime(folder)


@pytest.fixture(scope="module")
def plain(runtime):
    """Plain decoding; its costs are measured once."""
    return make_ar(DraftContext(runtime, Settings(drafter="none")))


def a_runtime(folder, **changes):
    return make_runtime(
        load(gguf_card(folder / "tiny.gguf", "qwen2", **changes), folder, CPU, "int8"), Settings()
    )


def eager(plain, runtime, spec):
    """An engine that asks the drafter in every round, and verifies its drafts, whatever they cost."""
    runtime.clear()
    costs = PassCosts(dict.fromkeys(plain.speculation.policy.costs.ms, 1.0))
    costs.observe = lambda *_: None
    drafter = make(DraftContext(runtime, Settings()), spec)
    speculation = Speculation(runtime.cache, [drafter], GumbelMaxVerifier(), costs)
    speculation.policy.asks = lambda *_: True
    return Autoregressive(plain.card, plain.vocabulary, speculation, plain.budget)


def texts(engine):
    return ["".join(chunk.text for chunk in engine.complete(r, Deadline())) for r in REQUESTS]


def a_state(engine, request=REQUESTS[0]):
    """A request with its prompt in the cache and its first token chosen."""
    state = engine.decode_state(request, Deadline())
    logits = engine.cache.prefill(state.prompt, Deadline(), want_logits=True)
    state.hidden = engine.cache.network.hidden[0, -1]
    state.ids.append(choose(logits, 0.0, 0, 0))
    return state


def saved(net, folder):
    """The spec of a drafter, its file among the adapters of the model in ``folder``."""
    save_net(net, folder / "adapters" / FILE, weights_hash(folder))
    return f"diffusion:{FILE}"


WORDS = list(range(5, 8000, 3))


class Copied:
    """The keys and values of the text before ``start``, then the window's own, in new tensors."""

    def __init__(self, kv, layers, start):
        self.text = [tuple(t[None, :, :start].clone() for t in kv.layer(layer)) for layer in layers]

    def update(self, keys, values, index):
        return tuple(torch.cat(both, 2) for both in zip(self.text[index], (keys, values), strict=True))


@torch.inference_mode()
def wanted_logits(net, runtime, state, slots, before):
    """Logits over the whole vocabulary as training computes them; ``before``: the token before each slot."""
    start, rows = len(state.prompt) + len(state.ids) - 1, len(slots) + 1
    tokens = torch.tensor([state.ids[-1], *(slot or 0 for slot in slots)])
    masked = torch.tensor([[False, *(slot is None for slot in slots)]])
    network = runtime.network
    x = net.inputs(state.hidden[None], network.embed(tokens)[None], masked)[0]
    bias = bias_of(torch.ones(rows, start + rows, dtype=torch.bool), torch.float32)
    kv = Copied(runtime.cache.kv, net.shape.borrowed, start)
    out = net.run(net.stack(rows, pack=False), x, network.rope(start, rows), bias, kv)[1:]
    return network.head(net.after(out, network.embed(torch.tensor(before))))


@pytest.mark.parametrize("sampler", [0, 8])
@pytest.mark.parametrize("slots", [[None] * 5, [40, None, None], [40, 41, None, None, None]])
@pytest.mark.parametrize("words", [WORDS, None])
def test_a_window_predicts_what_training_computes(runtime, plain, sampler, slots, words):
    """Up to the rounding of int8, given the tokens that the window itself finds likeliest."""
    state = a_state(plain)
    window = BlockWindow(a_network(words, sampler=sampler), runtime.network, runtime.cache)
    with torch.inference_mode():
        found = window.predict(state, slots)
    known = sum(slot is not None for slot in slots)
    chosen = [words[i] if words else i for i in found.argmax(-1).tolist()]
    before = [state.ids[-1], *slots[:known], *chosen[known:-1]]
    whole = wanted_logits(a_network(words, sampler=sampler), runtime, state, slots, before)
    wanted, found = (whole[:, words] if words else whole)[known:], found[known:]
    likely = found > -torch.inf
    assert likely.sum(-1).tolist() == [CANDIDATES if sampler else wanted.shape[1]] * len(found)
    errors = (found - wanted)[likely]
    assert errors.square().mean().sqrt() < 0.15 * wanted.std()


def test_a_window_reads_no_more_than_the_last_keys(runtime, plain, monkeypatch):
    """And its own rows, which the next pass overwrites."""
    state = a_state(plain)
    net = a_network(WORDS)
    window = BlockWindow(net, runtime.network, runtime.cache)
    monkeypatch.setattr(block_window, "SEEN", 8)
    start = len(state.prompt)
    with torch.inference_mode():
        first = window.predict(state, [None] * 5)
        for layer in (0, 1):
            for numbers in runtime.cache.kv.layer(layer):
                numbers[:, : start - 8] = 7.0
                numbers[:, start + 6 :] = 7.0
        assert torch.equal(window.predict(state, [None] * 5), first)
        for numbers in runtime.cache.kv.layer(1):
            numbers[:, start - 8] = 7.0
        assert not torch.equal(window.predict(state, [None] * 5), first)
    runtime.cache.wipe()


@pytest.mark.parametrize("options", ["", ",tokens=3", ",steps=2", ",drafts=3"])
@pytest.mark.parametrize("sampler", [0, 8])
def test_texts_stay_as_they_are(folder, runtime, plain, sampler, options):
    wanted = texts(plain)
    engine = eager(plain, runtime, saved(a_network(WORDS, sampler=sampler), folder) + options)
    assert texts(engine) == wanted
    assert engine.speculation.policy.accounts[engine.speculation.drafters[0].name].asked > 20
    assert texts(engine) == wanted  # with a warm cache


class Right(BlockWindow):
    """Runs the network, and then knows the next tokens, as far as they are among its words."""

    def predict(self, state, slots):
        logits = super().predict(state, slots)
        for row, token in zip(logits, self.middle[len(state.ids) :], strict=False):
            if token in WORDS:
                row[WORDS.index(token)] = 1e3
        return logits


@pytest.fixture
def right(folder, runtime, plain):
    """An engine whose drafter is right; the middles of ``REQUESTS`` in tokens; and what plain decoding says."""
    watching = ScriptedDrafter()
    plain.speculation.drafters = (watching,)
    wanted = []
    middles = []
    for request in REQUESTS:
        wanted.append(said(list(plain.complete(request, Deadline()))))
        middles.append(watching.seen)
    plain.speculation.drafters = ()
    engine = eager(plain, runtime, saved(a_network(WORDS), folder))
    (drafter,) = engine.speculation.drafters
    drafter.drafter.window.__class__ = Right
    return engine, middles, wanted


def test_a_draft_is_accepted_up_to_a_token_outside_its_words(right):
    engine, middles, wanted = right
    ends = []
    for request, middle, text in zip(REQUESTS, middles, wanted, strict=True):
        engine.speculation.drafters[0].drafter.window.middle = middle
        chunks = list(engine.complete(request, Deadline()))
        assert said(chunks) == text
        rounds = [chunk.round for chunk in chunks if chunk.round][1:]
        assert sum(made.accepted for made in rounds) > 0
        ends += [made.token for made in rounds if made.accepted < len(made.draft)]
    assert ends
    assert not set(ends) & set(WORDS)


def test_a_cancelled_request_leaves_the_next_one_as_it_was(right):
    engine, middles, wanted = right
    window = engine.speculation.drafters[0].drafter.window
    for request, middle, text in zip(REQUESTS, middles, wanted, strict=True):
        window.middle = middle
        steps = engine.steps(request, Deadline())
        for _ in range(9):
            next(steps)
        window.predict = lambda *_: (_ for _ in ()).throw(RuntimeError)  # half of a draft
        next(steps)
        steps.close()
        del window.predict
        assert said(list(engine.complete(request, Deadline()))) == text


def test_middles_side_by_side_are_those_alone(folder, runtime, plain):
    assert runtime.network.joins
    wanted = [said(list(plain.complete(request, Deadline()))) for request in REQUESTS]
    engine = eager(plain, runtime, saved(a_network(WORDS, sampler=8), folder))
    chunks, companies = together([engine.steps(request, Deadline()) for request in REQUESTS])
    assert [said(each) for each in chunks] == wanted
    assert max(companies) > 1


def test_numbers_beyond_all_bounds_change_no_text(folder, runtime, plain):
    """Keys and values that are NaN must not stay in the coder's buffer."""
    net = a_network(WORDS)
    net.layers[0].self_attn.v_proj.weight.fill_(3e38)
    wanted = texts(plain)
    engine = eager(plain, runtime, saved(net, folder))
    assert texts(engine) == wanted
    for layer in (0, 1):
        assert all(bool(torch.isfinite(numbers).all()) for numbers in runtime.cache.kv.layer(layer))


@pytest.mark.parametrize("words", [[3, 2, 9], [4, 4], [7, 8320], [-1, 3]])
def test_words_that_the_coder_does_not_have_are_refused(folder, runtime, words):
    spec = saved(a_network(words), folder)
    with pytest.raises(LoadError, match="words"):
        make_drafters(DraftContext(runtime, Settings(drafter=spec)))


def test_a_mixture_drafts_with_the_file_of_the_card(folder):
    save_net(a_network(WORDS), folder / "adapters" / FILE, weights_hash(folder))
    card = {"default": "ngram", "diffusion": FILE}
    drafters = make_drafters(DraftContext(a_runtime(folder, drafters=card), Settings(drafter="mix")))
    assert [drafter.name for drafter in drafters] == ["ngram", "diffusion"]
    assert isinstance(drafters[1].drafter, DiffusionDrafter)


@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_a_mixture_goes_without_a_file_that_cannot_be_used(folder, damage, caplog):
    path = folder / "adapters" / f"{damage}.safetensors"
    save_net(a_network(WORDS), path, "another" if damage == "other" else weights_hash(folder))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    if damage == "missing":
        path.unlink()
    card = {"default": "ngram", "diffusion": path.name}
    runtime = a_runtime(folder, drafters=card)
    drafters = make_drafters(DraftContext(runtime, Settings(drafter="mix")))
    assert [drafter.name for drafter in drafters] == ["ngram"]
    assert "drafter diffusion is left out" in caplog.text
    with pytest.raises(LoadError):
        make_drafters(DraftContext(runtime, Settings(drafter="diffusion")))
