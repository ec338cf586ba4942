"""The cache of canvases that their context sees: exact at a refresh of every step, cheap at the default."""

import dataclasses
import itertools

import pytest
import torch

from fimserver.engine.denoising.canvas import FullCanvas
from fimserver.engine.denoising.dual_cache import DualCache, DualCanvas
from fimserver.engine.denoising.refresh import CACHES, read_cache
from fimserver.engine.engines import ModelPool, make_dllm, make_refresh
from fimserver.engine.forward.kv import turned
from fimserver.engine.forward.passes import finish
from fimserver.engine.load import load
from fimserver.engine.runtime import DraftContext, make_runtime
from fimserver.errors import CardError, FimError, InputError
from fimserver.reasons import Reason
from fimserver.settings import Settings
from fimserver.types import Deadline, Request, Sampling
from tests.engine.test_autoregressive import CODE, REQUEST
from tests.tiny import DREAM_CANVAS, DREAMON_CANVAS, make_card, make_checkpoint

# By family: the architecture of the checkpoint, fields of the card, fields of its canvas.
FAMILIES = {
    "dream": ("Dream", {"loads_as": "qwen2"}, DREAM_CANVAS),
    "dream-search": ("Dream", {"loads_as": "qwen2"}, DREAM_CANVAS | {"length": "search"}),
    "dreamon": ("Dream", {"loads_as": "qwen2"}, DREAMON_CANVAS | {"initial_tokens": 16}),
    "open-dcoder": (
        "qwen2",
        {},
        DREAM_CANVAS | {"start": None, "after_suffix": None, "schedule": "threshold:0.5"},
    ),
    "a2d": ("qwen3", {}, DREAM_CANVAS | {"shift": False, "after_suffix": None}),
}
ONCE = "dual:1000,share=1000,resized=1000,typed=1000"  # one whole pass, then never again


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return {kind: make_checkpoint(root / kind, kind, seed=5) for kind in ("Dream", "qwen2", "qwen3")}


@pytest.fixture
def engine_of(folders):
    def make(family, cache, settings=Settings(), **changes):  # noqa: B008 - frozen
        architecture, fields, canvas = FAMILIES[family]
        card = make_card(
            architecture, **{"fim": None, "canvas": canvas | {"cache": cache}} | fields | changes
        )
        loaded = load(card, folders[architecture], torch.device("cpu"))
        if "expand" in canvas:  # a random model hardly ever says expand or delete: make it say them often
            with torch.no_grad():
                head = loaded.model.lm_head.weight
                head[loaded.vocabulary.special("<|expand|>")] = 1.05 * head[402]
                head[loaded.vocabulary.special("<eos>")] = 1.05 * head[506]
        return make_dllm(DraftContext(make_runtime(loaded, settings), settings))

    return make


def steps_of(engine, request):
    """The canvas after every step, and the reason."""
    chunks = list(engine.complete(request, Deadline()))
    return [tuple((s.text, s.masked) for s in c.canvas) for c in chunks[:-1]], chunks[-1].reason


def text_of(engine, request):
    return "".join(chunk.text for chunk in engine.complete(request, Deadline()))


@pytest.mark.parametrize("cache", ["dual:1", "checked:1"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_refreshed_at_every_step_it_is_the_uncached_decode(family, cache, engine_of):
    """Step by step, typing in between, several temperatures and seeds."""
    plain, cached = engine_of(family, "none"), engine_of(family, cache)
    for seed, temperature, cut in itertools.product(range(2), (0.0, 0.7), (60, 63)):
        sampling = Sampling(24, temperature, 0.95, seed, "none")
        request = dataclasses.replace(REQUEST, prefix=CODE[:cut], sampling=sampling)
        assert steps_of(cached, request) == steps_of(plain, request)
        assert text_of(cached, request) == text_of(plain, request) != ""


def test_a_grown_canvas_costs_whole_passes_and_a_typed_letter_does_not(engine_of):
    engine = engine_of("dreamon", "dual:1000,share=1000,resized=2")
    canvas = engine.open_canvas(REQUEST)
    mask = engine.tokens.mask
    rows = []
    for slots in (16, 17, 18, 19, 16):
        before = engine.dual.rows
        canvas.predict([mask] * slots)
        rows.append(engine.dual.rows - before)
    context = len(canvas.left) + len(canvas.right)
    assert rows == [context + 16, 18, 19, context + 19, context + 16]
    typed = engine.open_canvas(dataclasses.replace(REQUEST, prefix=REQUEST.prefix + "x"))
    before = engine.dual.rows
    typed.predict([mask] * 16)
    changed = len(typed.left) - next(
        i for i, (a, b) in enumerate(zip([*typed.left, -1], [*canvas.left, -2], strict=False)) if a != b
    )
    assert engine.dual.rows - before == max(changed, 1) + 16


@pytest.mark.parametrize("family", ["dream", "a2d"])
def test_a_pass_of_the_canvas_on_fresh_keys_equals_a_whole_pass(family, engine_of):
    engine = engine_of(family, ONCE)
    canvas = engine.open_canvas(REQUEST)
    slots = [300, engine.tokens.mask, 301, engine.tokens.mask]
    whole = canvas.predict(slots)
    again = canvas.predict(slots)
    assert canvas.exact == [True, True]
    torch.testing.assert_close(again, whole, atol=1e-4, rtol=1e-4)
    full = FullCanvas(engine.network, canvas.left, canvas.right, shift=canvas.shift)
    torch.testing.assert_close(full.predict(slots), whole, atol=1e-4, rtol=1e-4)
    other = [302, *slots[1:]]
    stale = canvas.predict(other)
    assert canvas.exact[-1] is False
    assert not torch.allclose(stale, full.predict(other), atol=1e-3)  # random weights do not forgive


def moved_suffix(engine, by):
    """Largest error of a suffix's moved keys, in the first layer, where they depend on position alone."""
    cache = engine.dual
    canvas = engine.open_canvas(REQUEST)
    mask = engine.tokens.mask
    canvas.predict([mask] * 8)
    canvas.predict([mask] * (8 + by))
    start = len(canvas.left) + 8 + by
    here = slice(start, start + len(canvas.right))
    moved = [t[:, here].clone() for t in cache.kv.layer(0)]
    cache.clear()
    canvas.predict([mask] * (8 + by))
    fresh = [t[:, here] for t in cache.kv.layer(0)]
    return [float((a - b).abs().max()) for a, b in zip(moved, fresh, strict=True)]


@pytest.mark.parametrize("by", [-5, -1, 1, 7])
def test_moved_keys_are_those_of_the_new_place(by, engine_of):
    assert max(moved_suffix(engine_of("dream", ONCE), by)) < 1e-4


def test_keys_that_were_only_copied_would_be_wrong(engine_of, monkeypatch):
    monkeypatch.setattr("fimserver.engine.forward.kv.turned", lambda keys, _cos, _sin: keys.clone())
    keys, values = moved_suffix(engine_of("dream", ONCE), 7)
    assert keys > 0.01
    assert values == 0


def test_keys_turn_as_positions_do():
    keys = torch.randn(2, 5, 16)
    angles = torch.rand(8)
    there = turned(keys, (3 * angles).cos(), (3 * angles).sin())
    twice = turned(turned(keys, angles.cos(), angles.sin()), (2 * angles).cos(), (2 * angles).sin())
    torch.testing.assert_close(there, twice)
    torch.testing.assert_close(turned(there, (-3 * angles).cos(), (-3 * angles).sin()), keys)


@pytest.mark.parametrize("cache", ["dual", "checked"])
def test_a_long_prompt_costs_an_eighth_of_the_rows(cache, engine_of):
    """Prompt of 1,024 tokens, canvas of 32, one slot a step, the default refresh; a last check included."""
    changes = {
        "prompt_tokens": 1024,
        "canvas": DREAM_CANVAS | {"initial_tokens": 32, "max_tokens": 32, "cache": cache},
    }
    engine = engine_of("dream", "none", **changes)
    request = Request("x = [1]\n" * 600, "y = [2]\n" * 200, sampling=Sampling(32, stop="none"))
    canvas = engine.open_canvas(request)
    canvas.left = (canvas.left * 2)[: 1024 - len(canvas.right)]  # the prompt is cut in steps: here it is full
    whole = len(canvas.left) + len(canvas.right) + 32
    engine.open_canvas = lambda _request: canvas
    chunks = list(engine.complete(request, Deadline()))
    steps = sum(bool(chunk.canvas) for chunk in chunks)
    assert steps == 32  # and no second decode
    assert engine.dual.rows * 8 <= steps * whole


def test_typing_reuses_the_prompt(engine_of):
    """Each letter runs the canvas and what was typed, as long as the rules allow; then the prompt again."""
    engine = engine_of("dream", "dual:1000,share=1000,typed=6")
    text = CODE[:90] + "a_b_c_d_e_f_g_h_i_j_k_l"
    whole_passes = []
    for typed in range(90, len(text)):
        canvas = engine.open_canvas(dataclasses.replace(REQUEST, prefix=text[:typed]))
        canvas.predict([engine.tokens.mask] * 8)
        whole_passes.append(canvas.exact[0])
    assert whole_passes[0] is True
    assert 1 < sum(whole_passes) <= len(whole_passes) // 3


def test_another_text_or_another_suffix_needs_a_whole_pass(engine_of):
    engine = engine_of("dream", ONCE, settings=Settings(batch=1))  # one text is kept
    for request, exact in [
        (REQUEST, True),
        (dataclasses.replace(REQUEST, prefix=REQUEST.prefix + "("), False),
        (dataclasses.replace(REQUEST, suffix="\n\nother()\n"), True),
        (Request("import json\n", REQUEST.suffix), True),
    ]:
        canvas = engine.open_canvas(request)
        canvas.predict([engine.tokens.mask] * 8)
        assert canvas.exact == [exact]


def test_a_warm_prompt_makes_the_first_step_cheap(engine_of):
    engine = engine_of("dream", "dual")
    engine.warm(REQUEST, Deadline())
    rows = engine.dual.rows
    engine.warm(REQUEST, Deadline())
    canvas = engine.open_canvas(REQUEST)
    canvas.predict([engine.tokens.mask] * 8)
    assert engine.dual.rows - rows == 9  # the canvas and the row before it
    assert canvas.exact == [True]


def test_clear_forgets_the_prompt(engine_of):
    engine = engine_of("dream", "dual")
    engine.warm(REQUEST, Deadline())
    engine.dual.clear()
    canvas = engine.open_canvas(REQUEST)
    canvas.predict([engine.tokens.mask] * 8)
    assert canvas.exact == [True]
    assert engine.dual.rows > 2 * len(canvas.left)


def test_a_canvas_without_left_context_reuses_row_0(engine_of):
    engine = engine_of("open-dcoder", ONCE)
    mask = engine.tokens.mask
    for slots in ([mask], [mask] * 3):
        canvas = DualCanvas(engine.dual, [], [300, 301], engine.rules, mask, shift=True)
        full = FullCanvas(engine.network, [], [300, 301], shift=True).predict(slots)
        engine.dual.clear()
        torch.testing.assert_close(canvas.predict(slots), full, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(canvas.predict(slots), full, atol=1e-4, rtol=1e-4)


def drifting(found):
    """What a drift of so much runs: no pass."""

    def drift(*_):
        yield from ()
        return found

    return drift


def test_a_vetoed_middle_is_the_uncached_one(engine_of, monkeypatch):
    plain, engine = engine_of("dream", "none"), engine_of("dream", ONCE.replace("dual", "checked"))
    exact = text_of(plain, REQUEST)
    monkeypatch.setattr(DualCanvas, "drift", drifting(0.3))  # above the bound of 0.25
    chunks = list(engine.complete(REQUEST, Deadline()))
    assert "".join(c.text for c in chunks) == exact
    assert [c.reason for c in chunks if c.reason] == [Reason.END]
    forwards = [c.forwards for c in chunks]
    assert forwards == sorted(forwards)
    assert forwards[-1] > 8  # those of the cached try are counted


@pytest.mark.parametrize("cut", [40, 64, 88])
def test_a_middle_of_a_cache_gone_wrong_is_caught(cut, engine_of, monkeypatch):
    """Whole passes leave damaged values behind: what is decoded on them is bad, and scored so by an exact pass."""
    request = dataclasses.replace(REQUEST, prefix=CODE[:cut], sampling=Sampling(24, stop="none"))
    exact = text_of(engine_of("dream", "none"), request)
    whole_pass = DualCache.whole_pass

    def damaging(self, wanted, rows):
        logits = yield from whole_pass(self, wanted, rows)
        with torch.inference_mode():
            for layer in range(2):
                self.kv.layer(layer)[1][:] *= -1
        return logits

    monkeypatch.setattr(DualCache, "whole_pass", damaging)
    assert text_of(engine_of("dream", ONCE), request) != exact
    assert text_of(engine_of("dream", ONCE.replace("dual", "checked")), request) == exact


def test_a_middle_within_the_bound_stays(engine_of, monkeypatch):
    cached = engine_of("dream", ONCE)
    checked = engine_of("dream", ONCE.replace("dual", "checked"))

    monkeypatch.setattr(DualCanvas, "drift", drifting(0.2))
    assert text_of(checked, REQUEST) == text_of(cached, REQUEST)


def test_drift_is_nought_where_nothing_is_stale_and_found_where_the_cache_lies(engine_of):
    engine = engine_of("dream", ONCE)
    canvas = engine.open_canvas(REQUEST)
    slots = list(range(300, 308))
    canvas.predict([*slots[:3], *[engine.tokens.mask] * 5])
    assert abs(finish(canvas.drift(slots, range(3, 8)))) < 1e-3
    canvas.predict([engine.tokens.mask] * 8)
    with torch.inference_mode():
        for layer in range(2):
            engine.dual.kv.layer(layer)[1][:] *= -1
    assert abs(finish(canvas.drift(slots, range(8)))) > 0.1


def test_time_that_is_up_spares_the_check(engine_of, monkeypatch):
    engine = engine_of("dream", ONCE.replace("dual", "checked"))

    def never(*_):
        raise AssertionError("checked although time was up")

    monkeypatch.setattr(DualCanvas, "drift", never)
    deadline = Deadline()
    for chunk in engine.complete(REQUEST, deadline):
        if chunk.forwards == 3:
            deadline.cancelled.set()
    assert chunk.reason is Reason.CANCELLED


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("sideways", "no canvas cache named 'sideways'"),
        ("dual:often", "steps must be of type int"),
        ("dual:0", "steps must be above 0"),
        ("dual:4,bound=1", "does not understand 'bound=1'"),
        ("none:3", "does not understand '3': it takes no options"),
    ],
)
def test_a_cache_that_cannot_be_is_named_with_what_could(spec, complaint):
    with pytest.raises(InputError, match=complaint):
        read_cache(spec)
    with pytest.raises(InputError, match=complaint):
        ModelPool(Settings(canvas_cache=spec))
    card = make_card("Dream", loads_as="qwen2", fim=None, canvas=DREAM_CANVAS | {"cache": spec})
    with pytest.raises(CardError, match=r"tiny: canvas\.cache: "):
        make_refresh(card, Settings())


def test_the_setting_goes_before_the_card():
    card = make_card("Dream", loads_as="qwen2", fim=None, canvas=DREAM_CANVAS | {"cache": "dual:4"})
    assert make_refresh(card, Settings()) == read_cache("dual:4")
    assert make_refresh(card, Settings(canvas_cache="checked:2")) == read_cache("checked:2")
    assert make_refresh(card, Settings(canvas_cache="none")) is None


def test_a_network_with_stretched_positions_has_no_such_cache(engine_of, folders):
    runtime = make_runtime(
        load(
            make_card("Dream", loads_as="qwen2", fim=None, canvas=DREAM_CANVAS),
            folders["Dream"],
            torch.device("cpu"),
        ),
        Settings(),
    )
    runtime.loaded.model.model.rotary_emb.rope_type = "dynamic"
    with pytest.raises(FimError, match="use --canvas-cache none"):
        _ = runtime.dual_caches


def test_every_kind_of_cache_has_rules_that_a_decode_obeys(engine_of):
    for kind in CACHES:
        assert text_of(engine_of("dream", kind), REQUEST)


def test_a_failed_pass_leaves_nothing_half_done(engine_of, monkeypatch):
    engine = engine_of("dream", ONCE)
    canvas = engine.open_canvas(REQUEST)
    slots = [engine.tokens.mask] * 8
    whole = canvas.predict(slots)
    forward = type(engine.network).forward

    def fails(*_):
        raise RuntimeError("out of memory")

    for break_it in (lambda: canvas.predict(slots), lambda: finish(canvas.drift([300] * 8, [1]))):
        monkeypatch.setattr(type(engine.network), "forward", fails)
        with pytest.raises(RuntimeError):
            break_it()
        monkeypatch.setattr(type(engine.network), "forward", forward)
        assert torch.equal(canvas.predict(slots), whole)
        assert isinstance(engine.dual, DualCache)
