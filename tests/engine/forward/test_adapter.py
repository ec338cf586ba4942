"""The canvas adapter: the ar route and its cache do not change, masks gate its rows, and untrained sizes are refused."""

import dataclasses

import pytest
import torch

from fimserver.cards import CardError, read_card
from fimserver.engine.denoising.canvas import ShiftedCanvas
from fimserver.engine.engines import make_ar, make_dllm
from fimserver.engine.forward.adapter import (
    CanvasAdapter,
    CanvasNetwork,
    Gate,
    GatedLinear,
    load_adapter,
    save_adapter,
)
from fimserver.engine.forward.graphs import EagerGraphs
from fimserver.engine.forward.passes import finish
from fimserver.engine.load import load, weights_hash
from fimserver.engine.runtime import DraftContext, make_runtime
from fimserver.errors import InputError, LoadError
from fimserver.settings import Settings
from fimserver.types import Deadline, Request, Sampling
from tests.engine.denoising.test_draws import OnDevice
from tests.engine.test_autoregressive import CODE, text_of
from tests.tiny import make_card, make_checkpoint

HIDDEN, LAYERS = 64, 2
PRODUCTS = {
    "qkv": (64, 128),
    "out": (64, 64),
    "gate_up": (64, 192),
    "down": (96, 64),
}  # of tests/tiny.py's qwen2
CANVAS = {
    "attention": "cached",
    "mask": "<|mask|>",
    "shift": True,
    "end": "<eos>",
    "length": "end",
    "block_tokens": 8,
    "max_tokens": 24,
    "schedule": "leftmost",
    "forbidden": ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<bos>"),
    "adapter": "canvas.safetensors",
}


def an_adapter(base, *, strength=0.3, blocks=(1, 2, 8, 16)):
    generator = torch.Generator().manual_seed(3)

    def some(*shape):
        return torch.randn(shape, generator=generator) * strength

    branches = {
        f"{layer}.{name}": (some(4, size_in), some(size_out, 4))
        for layer in range(LAYERS)
        for name, (size_in, size_out) in PRODUCTS.items()
    }
    sampler = some(8, 2 * HIDDEN), some(HIDDEN, 8)
    return CanvasAdapter(base, blocks, (0.05, 1.0), some(HIDDEN), branches, sampler)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = make_checkpoint(tmp_path_factory.mktemp("adapted") / "tiny", "qwen2", seed=5)
    save_adapter(an_adapter(weights_hash(folder)), folder / "adapters" / "canvas.safetensors")
    return folder


def runtime_of(folder, *, canvas=CANVAS, network="auto", drafters=None, batch=0):
    card = make_card("qwen2", canvas=canvas, **({"drafters": drafters} if drafters else {}))
    return make_runtime(load(card, folder, torch.device("cpu")), Settings(network=network, batch=batch))


def requests():
    for cut, temperature in ((40, 0.0), (60, 0.0), (90, 0.7), (150, 0.0)):
        yield Request(
            CODE[:cut],
            CODE[cut + 10 :],
            sampling=Sampling(max_tokens=24, temperature=temperature, seed=cut, stop="none"),
        )


def ar_engine(runtime, drafter="none"):
    return make_ar(DraftContext(runtime, Settings(drafter=drafter)))


class TestTheArRoute:
    def test_its_text_and_logits_are_the_same_with_the_adapter_in_use(self, folder):
        plain, adapted = runtime_of(folder, canvas=None), runtime_of(folder)
        assert isinstance(adapted.canvas_network, CanvasNetwork)
        one, two, dllm = ar_engine(plain), ar_engine(adapted), make_dllm(DraftContext(adapted, Settings()))
        for request in requests():
            expected = text_of(one, request)
            text_of(dllm, request)
            assert text_of(two, request) == expected
            prompt = one.prompt(request)
            assert two.prompt(request) == prompt
            logits = [
                runtime.cache.prefill(prompt, Deadline(), want_logits=True) for runtime in (plain, adapted)
            ]
            assert torch.equal(*logits)

    def test_a_canvas_leaves_the_cache_as_it_was(self, folder):
        runtime = runtime_of(folder)
        engine = make_dllm(DraftContext(runtime, Settings()))
        request = next(requests())
        canvas = engine.open_canvas(request)
        canvas.open(Deadline())
        count = len(canvas.context)
        before = [
            tensor[:, :count].clone() for layer in range(LAYERS) for tensor in runtime.cache.kv.layer(layer)
        ]
        text_of(engine, request.with_sampling(max_tokens=6))  # one block: nothing is settled
        after = [tensor[:, :count] for layer in range(LAYERS) for tensor in runtime.cache.kv.layer(layer)]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    def test_both_routes_have_the_same_prompt_in_one_cache(self, folder):
        runtime = runtime_of(folder)
        ar, dllm = ar_engine(runtime), make_dllm(DraftContext(runtime, Settings()))
        request = next(requests())
        list(ar.complete(request, Deadline()))
        assert dllm.open_canvas(request).context == ar.prompt(request)
        assert (
            dllm.num_uncached_tokens(request) <= runtime.cache.chunk
        )  # the last chunk, for the logits of its last row

    @pytest.mark.parametrize(
        "drafter", ["diffusion:self", "ngram,diffusion:self", "lookahead", "ngram,lookahead"]
    )
    def test_drafts_of_the_adapter_change_no_text(self, folder, drafter):
        runtime = runtime_of(folder)
        plain, drafted = ar_engine(runtime), ar_engine(runtime, drafter)
        for request in requests():
            assert text_of(drafted, request) == text_of(plain, request)


class TestGateByMask:
    def rows(self, runtime, network, ids, start):
        mask = runtime.cache.causal(start, len(ids))[:, : start + len(ids)]
        every = torch.arange(len(ids))
        logits = runtime.cache.rows(ids, start, mask, every, network)
        kept = [
            t[:, start : start + len(ids)].clone() for i in range(LAYERS) for t in runtime.cache.kv.layer(i)
        ]
        return logits, kept

    def test_rows_before_the_first_mask_are_the_frozen_model_to_the_bit(self, folder):
        runtime = runtime_of(folder)
        mask = runtime.loaded.vocabulary.special("<|mask|>")
        runtime.cache.prefill(list(range(10, 50)), Deadline(), want_logits=False)
        ids = [60, 61, 62, mask, 63, mask, 64, 65]
        frozen, frozen_kv = self.rows(runtime, runtime.network, ids, 40)
        mixed, mixed_kv = self.rows(runtime, runtime.canvas_network, ids, 40)
        assert torch.equal(mixed[:3], frozen[:3])
        assert all(torch.equal(a[:, :3], b[:, :3]) for a, b in zip(mixed_kv, frozen_kv, strict=True))
        for row in range(3, 8):  # the mask, and what is right of it
            assert not torch.allclose(mixed[row], frozen[row], atol=1e-3)

    def test_a_pass_without_masks_is_the_frozen_model(self, folder):
        runtime = runtime_of(folder)
        runtime.cache.prefill(list(range(10, 50)), Deadline(), want_logits=False)
        ids = [60, 61, 62, 63, 64, 65, 66, 67]
        frozen, _ = self.rows(runtime, runtime.network, ids, 40)
        mixed, _ = self.rows(runtime, runtime.canvas_network, ids, 40)
        assert torch.equal(mixed, frozen)

    def test_the_first_mask_is_predicted_by_text_alone(self, folder):
        """Whatever else the canvas holds, the next token is the ar route's own."""
        runtime = runtime_of(folder)
        engine = make_dllm(DraftContext(runtime, Settings()))
        mask = engine.tokens.mask
        canvas = engine.open_canvas(next(requests()))
        canvas.open(Deadline())
        context = list(canvas.context)
        for slots in ([mask] * 8, [mask, 50, mask, 51, *[mask] * 4], [20, 21, mask, 50, *[mask] * 4]):
            known = slots.index(mask)
            predicted = canvas.predict(slots)
            causal = runtime.loaded.model(input_ids=torch.tensor([context + slots[:known]])).logits[0]
            torch.testing.assert_close(
                predicted[: known + 1], causal[len(context) - 1 :], rtol=1e-4, atol=1e-4
            )

    def test_later_tokens_are_seen_by_masks_before_them(self, folder):
        runtime = runtime_of(folder)
        engine = make_dllm(DraftContext(runtime, Settings()))
        mask, canvas = engine.tokens.mask, engine.open_canvas(next(requests()))
        canvas.open(Deadline())
        one, two = canvas.predict([mask] * 8), canvas.predict([*[mask] * 7, 50])
        assert torch.equal(one[0], two[0])
        assert not torch.allclose(one[1], two[1], atol=1e-4)


class TestTheDllmRoute:
    def test_leftmost_and_nothing_else_is_the_ar_route(self, folder):
        """With no threshold that can be reached, each step commits the frozen model's own next token."""
        runtime = runtime_of(folder)
        dllm = make_dllm(DraftContext(runtime, Settings(schedule="leftmost", threshold=1.0)))
        ar = ar_engine(runtime)
        for request in requests():
            if request.sampling.temperature == 0:
                expected = text_of(ar, request)
                assert text_of(dllm, request).startswith(expected)

    @pytest.mark.parametrize("schedule", ["checked:0.001", "checked:0.001,masks=1", "checked"])
    def test_checked_guesses_leave_the_text_of_the_ar_route(self, folder, schedule):
        """At every temperature. Guesses of random weights are nearly always wrong; none is shown as text."""
        runtime = runtime_of(folder)
        ar, dllm = ar_engine(runtime), make_dllm(DraftContext(runtime, Settings(schedule=schedule)))
        for request in requests():
            expected, shown = text_of(ar, request), ""
            for chunk in dllm.complete(request, Deadline()):
                shown += chunk.text
                assert expected.startswith(shown)
            assert shown == expected

    def test_a_checked_canvas_shows_what_is_known_and_what_is_guessed(self, folder):
        runtime = runtime_of(folder)
        dllm = make_dllm(DraftContext(runtime, Settings(schedule="checked:0.001")))
        chunks = list(dllm.complete(next(requests()), Deadline()))
        shown = []
        for chunk in chunks:
            shown.append(chunk.text)
            known = [slot for slot in chunk.canvas if not slot.masked]
            assert "".join(slot.text for slot in known).startswith("".join(shown))
            assert chunk.tokens <= len(known)
            assert chunk.round is None
        assert any(len(chunk.canvas) % 8 == 0 and chunk.canvas[-1].masked for chunk in chunks)
        assert [slot.masked for slot in chunks[-1].canvas] == [False] * chunks[-1].tokens

    def test_the_first_guesses_take_rows_of_the_prompts_last_chunk(self, folder):
        """With room for masks after the prompt there is a draft before any other pass; the text is the same."""
        runtime = runtime_of(folder)
        dllm = make_dllm(DraftContext(runtime, Settings(schedule="checked:0.001")))
        ahead, cache = dllm.checked.ahead, runtime.cache
        beyond = ahead.beyond(dllm.checked.decoder.speculation.policy.costs)
        for request in requests():
            prompt = dllm.checked.decoder.prompt(request)
            plain = cache.prefill(prompt, Deadline(), want_logits=True).clone()
            cache.clear()
            logits = finish(cache.prefilling(prompt, Deadline(), want_logits=True, beyond=beyond))
            room = -len(prompt) % cache.chunk
            assert len(logits) == (3 if room >= 2 else 1)
            assert torch.equal(ahead.opened(logits, beyond), plain)
            assert torch.equal(cache.prefill(prompt, Deadline(), want_logits=True), plain)

    def test_cached_equals_uncached(self, folder):
        runtime = runtime_of(folder)

        class Uncached(ShiftedCanvas):
            """Everything is read again at every step."""

            def predicting(self, slots):
                self.cache.clear()
                fresh = ShiftedCanvas(self.cache, self.context, self.network, self.mask_token)
                fresh.settle(self._done)
                fresh.open(Deadline())
                return fresh.predicting(slots)

        engine = make_dllm(DraftContext(runtime, Settings(threshold=0.2)))
        for request in requests():
            cached = text_of(engine, request)
            original = engine.open_canvas
            engine.open_canvas = lambda r, original=original: Uncached(
                runtime.cache, original(r).context, runtime.canvas_network, engine.tokens.mask
            )
            assert text_of(engine, request) == cached
            engine.open_canvas = original

    def test_checking_needs_an_adapter(self, folder):
        other = {k: v for k, v in CANVAS.items() if k != "adapter"} | {"shift": False}
        with pytest.raises(InputError, match="canvas adapter"):
            make_dllm(DraftContext(runtime_of(folder, canvas=other), Settings(schedule="checked")))
        with pytest.raises(CardError, match="canvas adapter"):
            make_dllm(DraftContext(runtime_of(folder, canvas=other | {"schedule": "checked"}), Settings()))

    def test_text_is_read_once(self, folder):
        """A step runs the rows that are not in the buffer yet: what was committed at the left since, and the canvas."""
        runtime = runtime_of(folder)
        engine = make_dllm(DraftContext(runtime, Settings()))
        mask, canvas = engine.tokens.mask, engine.open_canvas(next(requests()))
        canvas.open(Deadline())
        seen = []
        original = runtime.cache.rows_pass
        runtime.cache.rows_pass = lambda ids, *rest: seen.append(list(ids)) or original(ids, *rest)
        first = canvas.predict([mask] * 8)
        canvas.predict([20, *[mask] * 7])
        canvas.predict([20, 21, mask, 23, *[mask] * 4])
        canvas.settle([20, 21, 22, 23, 24, 25, 26, 27])
        following = canvas.predict([mask] * 8)
        canvas.settle([30] * 8)
        assert [len(ids) for ids in seen] == [8, 8, 7, 14]
        assert seen[2] == [21, mask, 23, *[mask] * 4]
        del runtime.cache.rows_pass
        again = engine.open_canvas(next(requests()))
        again.open(Deadline())
        torch.testing.assert_close(
            again.predict([20, 21, 22, 23, 24, 25, 26, 27, *[mask] * 8])[8:], following, rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(
            again.predict([mask] * 8), first, rtol=1e-4, atol=1e-4
        )  # text may be taken back

    def test_a_middle_may_be_longer_than_a_block(self, folder):
        engine = make_dllm(DraftContext(runtime_of(folder), Settings(threshold=0.05)))
        counts = [list(engine.complete(request, Deadline()))[-1].tokens for request in requests()]
        assert max(counts) > 8
        assert max(counts) <= 24


class TestTheFile:
    def test_it_comes_back_as_it_was_written(self, tmp_path):
        adapter = an_adapter("a" * 64)
        save_adapter(adapter, tmp_path / "a.safetensors")
        again = load_adapter(tmp_path / "a.safetensors", "a" * 64)
        assert (again.base, again.blocks, again.mask_ratios) == (
            adapter.base,
            adapter.blocks,
            adapter.mask_ratios,
        )
        assert again.branches.keys() == adapter.branches.keys()
        assert torch.equal(again.mask, adapter.mask.bfloat16().float())

    def test_other_weights_are_refused(self, folder):
        with pytest.raises(LoadError, match="was trained on weights"):
            load_adapter(folder / "adapters" / "canvas.safetensors", "b" * 64)

    def test_a_missing_or_damaged_file_is_one_line(self, tmp_path):
        for path, content in ((tmp_path / "none", None), (tmp_path / "bad", b"\x00" * 50)):
            if content:
                path.write_bytes(content)
            with pytest.raises(LoadError, match="cannot be read"):
                load_adapter(path, "a" * 64)

    def test_infinity_is_refused(self, tmp_path):
        adapter = dataclasses.replace(an_adapter("a" * 64), mask=torch.full((HIDDEN,), torch.inf))
        save_adapter(adapter, tmp_path / "a.safetensors")
        with pytest.raises(LoadError, match="NaN or infinity"):
            load_adapter(tmp_path / "a.safetensors", "a" * 64)

    def test_blocks_and_ratios_that_it_has_not_seen_are_refused(self, folder):
        with pytest.raises(LoadError, match="8, 16 tokens, not of 12"):
            _ = runtime_of(folder, canvas=CANVAS | {"block_tokens": 12}).canvas_network
        adapter = dataclasses.replace(an_adapter("a" * 64), mask_ratios=(0.3, 1.0))
        with pytest.raises(LoadError, match="shares of masks from"):
            adapter.check_block(8)

    def test_an_adapter_of_another_network_is_refused(self, folder):
        adapter = an_adapter("a" * 64)
        deep = dataclasses.replace(
            adapter, branches={f"9.{n.partition('.')[2]}": b for n, b in adapter.branches.items()}
        )
        for wrong in (deep, dataclasses.replace(adapter, mask=torch.zeros(HIDDEN + 1))):
            with pytest.raises(LoadError, match="other layers or sizes"):
                CanvasNetwork(runtime_of(folder).network, wrong, 5)

    def test_it_needs_our_own_forward_pass_and_the_ar_route_does_not(self, folder):
        runtime = runtime_of(folder, network="native")
        assert text_of(ar_engine(runtime), next(requests())) is not None
        with pytest.raises(LoadError, match="--network auto"):
            make_dllm(DraftContext(runtime, Settings()))


@pytest.mark.parametrize("change", [{"shift": False}, {"adapter": None}, {"attention": "full"}])
def test_a_card_that_contradicts_itself_is_refused(change, tmp_path):
    fields = CANVAS | change
    lines = [
        f"{k} = {str(v).lower() if isinstance(v, bool) else repr(list(v) if isinstance(v, tuple) else v)}"
        for k, v in fields.items()
        if v is not None
    ]
    fim = 'layout = "psm"\nprefix = "a"\nsuffix = "b"\nmiddle = "c"\nstops = ["d"]'
    text = f'name = "x"\nlicence = "MIT"\nosi = true\nparameters_m = 1.0\narchitecture = "qwen2"\n[fim]\n{fim}\n[canvas]\n'
    (tmp_path / "x.toml").write_text(text + "\n".join(lines))
    with pytest.raises(CardError, match="adapter"):
        read_card(tmp_path / "x.toml")


class TestTheGateOfAGPU:
    """Tried on a CPU: the rows are chosen on the device, and the host waits for nothing."""

    def test_its_logits_are_those_of_slices(self, folder):
        runtime = runtime_of(folder)
        network, cache = runtime.canvas_network, runtime.cache
        mask = network.mask_token
        cache.prefill(list(range(300, 340)), Deadline(), want_logits=False)
        for ids in ([7, 8, mask, 9, mask], [mask] * 5, [7, 8, 9, 10, 11]):
            every = torch.arange(len(ids))
            logits = []
            for on_device in (False, True):
                network.gate.on_device = on_device
                logits.append(cache.rows(ids, 40, cache.block(40, len(ids)), every, network))
            torch.testing.assert_close(*logits)
            assert network.gate.rows.flatten().tolist() == [mask in ids[: i + 1] for i in range(len(ids))]
        plain = cache.rows(ids, 40, cache.block(40, len(ids)), every)
        assert torch.equal(logits[1], plain)  # text alone

    def test_parts_that_are_text_are_left_as_they_are(self):
        gate = Gate(9, on_device=True)
        ids = torch.tensor([[1, 9, 2], [9, 3, 4]])
        gate.set([(ids, False), (ids, True)])
        assert gate.rows.flatten().tolist() == [False] * 6 + [False, True, True, True, True, True]
        assert gate.slices == []
        on_cpu = Gate(9, on_device=False)
        on_cpu.set([(ids, False), (ids, True)])
        assert on_cpu.slices == [slice(7, 9), slice(9, 12)]
        assert on_cpu.rows is None

    def test_nothing_of_it_is_read(self):
        gate = Gate(0, on_device=True)
        down, up = torch.ones(2, 4), torch.ones(3, 2)
        product = GatedLinear(lambda x: x[:, :3].clone(), down, up, gate)
        OnDevice.waits = 0
        gate.set([(torch.tensor([[1, 0, 2]]).as_subclass(OnDevice), True)])
        out = product(torch.ones(3, 4).as_subclass(OnDevice))
        assert OnDevice.waits == 0
        assert out.tolist() == [[1.0] * 3, [9.0] * 3, [9.0] * 3]


class TestOverStaticBuffers:
    """As on a GPU: the passes of the canvas go through graphs too, which are all captured at load."""

    def static(self, folder, *, on_device=False):
        runtime = runtime_of(folder, batch=1)  # one KV buffer
        graphs = EagerGraphs()
        runtime.network.use_graphs(graphs)
        runtime.canvas_network.gate.on_device = on_device
        return runtime, graphs

    @pytest.mark.parametrize("on_device", [False, True])
    def test_logits_are_those_of_passes_without_graphs(self, folder, on_device):
        plain, (static, graphs) = runtime_of(folder), self.static(folder, on_device=on_device)
        network = static.canvas_network
        mask = network.mask_token
        positions = torch.tensor([40, 41, 43, 42, 43])
        for ids, places in (
            ([mask] * 5, None),
            ([7, 8, 9, 10, 11], None),
            ([7, 8, mask, 9, mask], positions),
        ):
            every = torch.arange(5)
            rows = []
            for runtime in (plain, static):
                cache = runtime.cache
                cache.prefill(list(range(300, 340)), Deadline(), want_logits=False)
                step = cache.rows_pass(ids, 40, cache.block(40, 5), every, runtime.canvas_network, places)
                rows.append((step.result()[0], runtime.canvas_network.hidden[0]))
            for got, wanted in zip(rows[1], rows[0], strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
        assert {key[0] for key in graphs.keys} == {id(static.network.static), id(network._network.static)}

    @pytest.mark.parametrize("schedule", ["checked", "leftmost"])
    def test_all_that_requests_run_is_captured_at_load(self, folder, schedule):
        plain = ar_engine(runtime_of(folder))
        runtime, graphs = self.static(folder)
        ar = ar_engine(runtime, "ngram,lookahead")
        dllm = make_dllm(DraftContext(runtime, Settings(schedule=schedule)))
        captured = set(graphs.keys)
        for request in requests():
            expected = text_of(plain, request)
            assert text_of(ar, request) == expected
            shown = text_of(dllm, request)
            assert schedule == "leftmost" or shown == expected
        assert set(graphs.keys) == captured
