"""The length probe: its file, its input, and that a card with one does not search."""

import math

import pytest
import torch
from safetensors.torch import save_file

from fimserver.canvas_card import Canvas
from fimserver.engine.denoising.length_probe import (
    LengthProbe,
    features,
    load_probe,
    masked_states,
    predict_length,
    save_probe,
)
from fimserver.engine.engines import make_dllm
from fimserver.engine.forward.fused import fuse
from fimserver.engine.forward.passes import finish
from fimserver.engine.load import load, weights_hash
from fimserver.engine.runtime import DraftContext, make_runtime
from fimserver.errors import LoadError, NonFiniteError
from fimserver.settings import Settings
from fimserver.types import Deadline
from tests.engine.test_autoregressive import REQUEST
from tests.tiny import DREAM_CANVAS, copy_checkpoint, make_card, make_checkpoint

WIDTH = 64
HASH = "a" * 64
CANVAS = DREAM_CANVAS | {"length": "search"}


def probe_of(length, target=HASH, slots=6, width=WIDTH):
    """One that gives the same length whatever it reads."""
    return LengthProbe(target, slots, torch.zeros(3 * width), math.log(length))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("probe") / "tiny", "Dream", seed=5)


@pytest.fixture
def folder(good, tmp_path):
    return copy_checkpoint(good, tmp_path / "tiny")


def engine_of(folder, **canvas):
    card = make_card("Dream", loads_as="qwen2", fim=None, canvas=CANVAS | canvas)
    loaded = load(card, folder, torch.device("cpu"))
    return make_dllm(DraftContext(make_runtime(loaded, Settings()), Settings()))


def test_it_reads_the_first_the_last_and_the_mean():
    hidden = torch.tensor([[1.0, 2.0], [3.0, 5.0], [5.0, 5.0]])
    assert features(hidden).tolist() == [1, 2, 5, 5, 3, 4]


def test_a_length_is_between_one_and_the_limit():
    probe = LengthProbe(HASH, 4, torch.tensor([1.0, 0.0, 0.0]), 0.0)
    for log, expected in ((math.log(7), 7), (math.log(7.4), 7), (-3.0, 1), (800.0, 24)):
        assert probe.length(torch.tensor([log, 9.0, 9.0]), 24) == expected
    for bad in (math.nan, math.inf):
        with pytest.raises(NonFiniteError, match="hidden states are NaN"):
            probe.length(torch.tensor([bad, 0.0, 0.0]), 24)


def test_a_file_gives_back_what_was_written(tmp_path):
    probe = LengthProbe(HASH, 7, torch.randn(3 * WIDTH), 1.25)
    save_probe(probe, tmp_path / "new" / "p.safetensors")
    found = load_probe(tmp_path / "new" / "p.safetensors", HASH, WIDTH)
    assert (found.target, found.slots, found.bias) == (HASH, 7, 1.25)
    assert torch.equal(found.weight, probe.weight)


def test_a_bad_file_is_refused_in_one_line(tmp_path):
    path = tmp_path / "p.safetensors"
    about = {"kind": "length probe", "target": HASH, "slots": "6"}
    tensors = {"weight": torch.zeros(3 * WIDTH), "bias": torch.tensor(0.0)}
    cases = [
        (tensors, about | {"kind": "Heads"}, "holds 'Heads', not 'length probe'"),
        (
            tensors,
            about | {"target": "b" * 64},
            "fitted to weights bbbbbbbbbbbb…, the model has aaaaaaaaaaaa…",
        ),
        (tensors | {"weight": torch.zeros(3 * WIDTH - 3)}, about, r"shape \(189,\) for 6 masks.* needs 192"),
        (tensors | {"weight": torch.zeros(3, WIDTH)}, about, r"shape \(3, 64\)"),
        (tensors, about | {"slots": "0"}, "for 0 masks"),
        (tensors, about | {"slots": "many"}, r"cannot be read \(ValueError\)"),
        (tensors, {"kind": "length probe"}, r"cannot be read \(KeyError\)"),
        ({"weight": tensors["weight"]}, about, "cannot be read"),
        (tensors | {"bias": torch.zeros(2)}, about, "cannot be read"),
        (tensors | {"bias": torch.tensor(math.nan)}, about, "NaN or infinity"),
        (tensors | {"weight": torch.full((3 * WIDTH,), math.inf)}, about, "NaN or infinity"),
    ]
    for stored, metadata, complaint in cases:
        save_file(stored, path, metadata)
        with pytest.raises(LoadError, match=complaint) as refused:
            load_probe(path, HASH, WIDTH)
        assert "\n" not in str(refused.value)
    path.write_bytes(b"no tensors")
    for place in (path, tmp_path / "missing.safetensors"):
        with pytest.raises(LoadError, match=f"{place.name} cannot be read"):
            load_probe(place, HASH, WIDTH)


def test_a_card_with_a_probe_starts_with_its_length_after_one_pass(folder):
    save_probe(probe_of(9, weights_hash(folder)), folder / "adapters" / "length.safetensors")
    engine = engine_of(folder, length_probe="length.safetensors")
    canvas = engine.open_canvas(REQUEST)
    assert finish(engine._slots(canvas, 0, 24, Deadline())) == 9
    assert canvas.forwards == 1
    assert finish(engine._slots(canvas, 0, 5, Deadline())) == 5
    assert finish(engine._slots(canvas, 64, 24, Deadline())) == 16  # a quarter of what was expected
    chunks = list(engine.complete(REQUEST, Deadline()))
    assert len(chunks[0].canvas) == 9
    assert "".join(chunk.text for chunk in chunks)


def test_time_that_is_up_takes_no_pass(folder):
    engine = engine_of(folder)
    canvas = engine.open_canvas(REQUEST)
    for at_least, shortest in ((0, 1), (3, 3), (30, 24)):
        steps = predict_length(
            canvas, engine.network, probe_of(9), engine.tokens.mask, 24, Deadline(0.0), at_least
        )
        assert finish(steps) == shortest
    assert canvas.forwards == 0


def test_a_probe_that_does_not_fit_the_model_is_refused_at_load(folder):
    place = folder / "adapters" / "length.safetensors"
    for probe, complaint in (
        (probe_of(9), "fitted to weights aaaaaaaaaaaa…"),
        (probe_of(9, weights_hash(folder), width=32), r"shape \(96,\)"),
    ):
        save_probe(probe, place)
        with pytest.raises(LoadError, match=complaint):
            engine_of(folder, length_probe=place.name)
    place.unlink()
    with pytest.raises(LoadError, match=r"length\.safetensors cannot be read"):
        engine_of(folder, length_probe=place.name)


def test_a_card_gives_a_probe_or_a_bias_and_only_to_a_search():
    for fields, complaint in (
        ({"length": "fixed", "length_probe": "p"}, "for the length 'search'"),
        ({"length": "fixed", "length_bias": (0.5,)}, "for the length 'search'"),
        ({"length_probe": "p", "length_bias": (0.5,)}, "with a probe nothing is searched"),
    ):
        with pytest.raises(ValueError, match=complaint):
            Canvas.model_validate(CANVAS | fields)


@pytest.mark.parametrize("shift", [True, False])
def test_the_states_are_those_of_the_masks_whatever_runs_the_pass(shift, folder):
    """Uncached, cached, and in our own class, whose whole passes are transformers'."""
    states = {}
    for cache in ("none", "dual:1"):
        engine = engine_of(folder, cache=cache, shift=shift)
        canvas = engine.open_canvas(REQUEST)
        states[cache] = finish(masked_states(canvas, engine.network, 6, engine.tokens.mask)).clone()
    assert states["none"].shape == (6, WIDTH)
    torch.testing.assert_close(states["dual:1"], states["none"], atol=1e-4, rtol=1e-4)
    own = fuse(engine.network.whole.model, 256, 1)
    masked = torch.tensor([*canvas.left, *[engine.tokens.mask] * 6, *canvas.right])
    first = len(canvas.left) - int(shift)
    own.forward_bidirectional(masked, torch.arange(first, first + 6))
    torch.testing.assert_close(own.hidden[0], states["none"], atol=1e-4, rtol=1e-4)


def test_the_states_of_a_cached_canvas_are_those_of_its_masks(nano):
    engine = nano.engine("dllm")
    canvas = engine.open_canvas(REQUEST)
    assert canvas.open(Deadline())
    states = finish(masked_states(canvas, engine.network, 6, engine.tokens.mask))
    torch.testing.assert_close(engine.network.head(states), canvas.predict([engine.tokens.mask] * 6))
