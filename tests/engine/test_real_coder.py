"""The 0.5B coder: every way of decoding gives the tokens of plain decoding. Skipped without its file."""

from pathlib import Path

import pytest

from fimserver.engine.drafters.ngram.drafter import NGramDrafter
from fimserver.engine.engines import ModelPool
from fimserver.engine.forward import int8
from fimserver.engine.speculation.drafts import RandomDrafter, ScriptedDrafter
from fimserver.engine.weights import int8_cache
from fimserver.settings import Settings
from fimserver.types import Deadline, Request, Sampling
from tests.coder import MODELS, NAME, needs_coder
from tests.engine.speculation.test_speculate import Liar, ids_of

KEPT = int8_cache.FOLDER  # the person's own, not the test's: quantising takes a minute
pytestmark = [
    pytest.mark.skipif(not int8.is_exact(), reason="this processor has no exact int8 products"),
    needs_coder,
]
PREFIX = Path(__file__).read_text("utf-8") * 2 + "\n\ndef mean(values):\n    "
REQUESTS = (
    Request(
        PREFIX,
        "\n\n\ndef median(values):\n    return sorted(values)[len(values) // 2]\n",
        sampling=Sampling(max_tokens=24, stop="none"),
    ),
    Request(PREFIX, "\n", sampling=Sampling(max_tokens=24, stop="none", temperature=0.8, seed=3)),
)


@pytest.fixture(scope="module")
def engine():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8_cache, "FOLDER", KEPT)
        settings = Settings(
            ar_card=NAME, models_dir=MODELS, device="cpu", threads=1, quantize="int8", drafter="none"
        )
        return ModelPool(settings).engine("ar")


@pytest.mark.parametrize("request_", REQUESTS, ids=["greedy", "sampled"])
def test_the_text_is_that_of_plain_decoding(engine, request_):
    costs = engine.speculation.policy.costs
    assert costs.plain == (1, 1)
    assert len(costs.ms) > 8  # no shape was refused: one row has the bits of many
    engine.cache.clear()
    plain, _ = ids_of(engine, request_)
    assert ids_of(engine, request_)[0] == plain  # from a warm cache
    for drafter in (
        ScriptedDrafter(plain),
        Liar(plain, 0),
        RandomDrafter(0, 150000),
        NGramDrafter(engine.vocabulary),
    ):
        assert ids_of(engine, request_, [drafter])[0] == plain


def test_a_prompt_read_in_pieces_is_the_same_prompt(engine):
    request = REQUESTS[0]
    whole, _ = ids_of(engine, request)
    engine.cache.clear()
    for size in (200, 1000, len(request.prefix)):
        engine.warm(Request(request.prefix[:size], request.suffix), Deadline())
    assert ids_of(engine, request)[0] == whole


RECORDS = Path(__file__).parents[2] / "examples" / "records.py"


# Each is a floor of quality: what the model says at a place that people begin with.
@pytest.mark.parametrize(
    ("left", "middle"),
    [
        ("        return ", "json.load(file)"),
        ("        return js", "on.load(file)"),
        ("        ret", "urn json.load(file)"),
    ],
)
def test_a_cursor_inside_a_word_or_after_a_blank_is_filled(left, middle, engine):
    text = RECORDS.read_text("utf-8")
    before, after = text.split("        return \n", 1)
    request = Request(before + left, "\n" + after, path="records.py")
    assert "".join(chunk.text for chunk in engine.complete(request, Deadline())) == middle
