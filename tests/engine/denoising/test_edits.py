"""Token-to-token editing compared with the sampler of LLaDA 2.1, step by step, cached and uncached."""

import itertools

import pytest
import torch

from fimserver.engine.denoising.denoiser import MAX_STEPS
from fimserver.engine.denoising.edits import Edits
from fimserver.engine.engines import make_dllm
from fimserver.engine.load import load
from fimserver.engine.runtime import DraftContext, make_runtime
from fimserver.reasons import Reason
from fimserver.settings import Settings
from fimserver.types import Deadline
from tests.engine.block_reference import edited_decode
from tests.engine.test_block_diffusion import (
    as_sdar,
    card_of,
    reference_of,
    request_of,
    steps_of,
    texts,
    uncached,
)
from tests.tiny import make_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = make_checkpoint(tmp_path_factory.mktemp("edits") / "tiny", "qwen3", seed=11)
    as_sdar(made)
    return made


@pytest.fixture(scope="module")
def engine_of(folder):
    def make(**canvas):
        settings = Settings()
        loaded = load(card_of("sdar", **{"block_tokens": 8} | canvas), folder, torch.device("cpu"))
        return make_dllm(DraftContext(make_runtime(loaded, settings), settings))

    return make


def reference_steps(engine, folder, request, level):
    left, _ = engine._sides(request)
    card = engine.canvas_card
    history = edited_decode(
        reference_of(folder, card.block_tokens),
        left,
        card.block_tokens,
        mask=engine.tokens.mask,
        end=engine.tokens.end,
        forbidden=engine.tokens.forbidden,
        level=level,
        edit_level=card.edit_level,
        reviews=card.edit_steps,
        blocks=-(-(request.sampling.max_tokens + len(left) % card.block_tokens) // card.block_tokens),
        temperature=request.sampling.temperature,
        top_p=request.sampling.top_p,
        seed=request.sampling.seed,
    )
    return [step for step in texts(engine, history) if step]


def changes(steps):
    """How many filled slots have another text one step later."""
    pairs = itertools.pairwise(steps)
    return sum(
        a is not None and a != b for before, after in pairs for a, b in zip(before, after, strict=False)
    )


@pytest.mark.parametrize(
    ("temperature", "top_p", "seed"), [(0.0, 1.0, 0), (0.7, 1.0, 1), (1.0, 0.9, 5), (0.3, 0.95, 8)]
)
@pytest.mark.parametrize(("level", "edit_level", "reviews"), [(0.3, 0.05, 16), (0.1, 0.0, 3), (0.2, 0.3, 16)])
def test_every_step_is_that_of_the_sampler(
    level, edit_level, reviews, temperature, top_p, seed, folder, engine_of
):
    engine = engine_of(edit_level=edit_level, edit_steps=reviews, schedule=f"threshold:{level}")
    edited = 0
    for cut in (30, 61, 92):
        request = request_of(cut, temperature=temperature, top_p=top_p, seed=seed)
        steps = steps_of(engine, request)
        assert steps == reference_steps(engine, folder, request, level)
        edited += changes(steps)
    assert edited or edit_level > 0


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_cached_equals_uncached(temperature, engine_of):
    engine = engine_of(edit_level=0.05, schedule="threshold:0.2")
    original = engine.open_canvas
    for cut in (31, 62, 93):
        request = request_of(cut, temperature=temperature, seed=cut)
        cached = steps_of(engine, request)
        engine.open_canvas = lambda r: uncached(original(r), engine.tokens.mask)
        assert steps_of(engine, request) == cached
        engine.open_canvas = original


def test_text_that_may_still_change_is_not_shown(engine_of):
    """Chunks only ever add to the text, although slots change; a block comes when it is settled."""
    engine = engine_of(edit_level=0.0, edit_steps=4, schedule="threshold:0.2")
    chunks = list(engine.complete(request_of(61), Deadline()))
    views = [chunk.canvas for chunk in chunks if chunk.canvas]
    text = "".join(chunk.text for chunk in chunks)
    assert "".join(slot.text for slot in views[-1]).startswith(text)  # the last block goes over the limit
    blocks = sum(bool(chunk.text) for chunk in chunks)
    assert 1 < blocks < len(chunks) // 2


def test_time_that_is_up_shows_what_is_filled_from_the_left(engine_of):
    engine = engine_of(edit_level=0.05, schedule="leftmost")
    deadline = Deadline()
    chunks = []
    for chunk in engine.complete(request_of(61), deadline):
        chunks.append(chunk)
        if len(chunks) == 4:
            deadline.cancelled.set()
    assert chunks[-1].reason is Reason.CANCELLED
    assert "".join(chunk.text for chunk in chunks)
    assert len(chunks) < MAX_STEPS


def test_a_card_without_a_level_never_edits(engine_of):
    assert Edits.of(engine_of().canvas_card) is None
    assert changes(steps_of(engine_of(), request_of(61))) == 0


@pytest.mark.parametrize(
    "fields",
    [{"shift": True}, {"sub_block_tokens": 4}, {"attention": "full", "context": ""}],
)
def test_only_whole_blocks_with_rows_of_their_own_are_edited(fields):
    with pytest.raises(ValueError, match=r"`edit_level` is for the attention 'block' without|`context`"):
        card_of("sdar", edit_level=0.5, block_tokens=8, **{"length": "end"} | fields)
