"""The block drafter that ships for the 0.5B coder: it fits its weights, and drafts without changing its text."""

import pytest
import torch
from safetensors import safe_open

from fimserver.cards import MODELS as PACKAGE
from fimserver.cards import get_card, model_folder
from fimserver.engine.engines import make_ar
from fimserver.engine.load import load
from fimserver.engine.runtime import DraftContext, make_runtime
from fimserver.settings import Settings
from fimserver.types import Deadline, Request, Sampling
from tests.coder import MODELS, NAME, needs_coder

CARD = get_card(NAME)
CODE = (
    "import json\n\n\nclass Store:\n    def __init__(self, path):\n        self.path = path\n"
    "        self.items = {}\n\n    def load(self):\n        "
)
REQUESTS = [
    Request(CODE, "\n", sampling=Sampling(max_tokens=32, stop="none", temperature=temperature, seed=3))
    for temperature in (0.0, 0.7)
]


def test_the_file_is_for_the_weights_of_the_card():
    with safe_open(PACKAGE / "adapters" / CARD.drafters["diffusion"], "pt") as file:
        assert file.metadata()["target"] in CARD.files.values()


@pytest.fixture(scope="module")
def runtime():
    return make_runtime(load(CARD, model_folder(CARD, MODELS), torch.device("cpu"), "int8"), Settings())


class Watching:
    """Asks another drafter after every pass of plain decoding."""

    name = "watching"
    inline = True
    keeps_text = False

    def __init__(self, drafter):
        self.drafter = drafter
        self.guesses = {}  # by the number of the token

    def propose(self, state, size):  # noqa: ARG002
        return []

    def observe(self, state, *, ended):  # noqa: ARG002
        self.ids = state.ids
        for draft in self.drafter.propose(state, 1):
            self.guesses[len(state.ids)] = draft.tokens[0]


@needs_coder
def test_it_guesses_what_the_coder_writes_next(runtime):
    (block,) = make_ar(DraftContext(runtime, Settings(drafter="diffusion"))).speculation.drafters
    engine = make_ar(DraftContext(runtime, Settings(drafter="none")))
    watching = Watching(block)
    engine.speculation.drafters = (watching,)
    list(engine.complete(REQUESTS[0], Deadline()))
    ids = dict(enumerate(watching.ids))
    assert sum(ids.get(place) == token for place, token in watching.guesses.items()) >= 3


@needs_coder
@pytest.mark.parametrize("request_", REQUESTS)
def test_the_text_stays(runtime, request_):
    plain, drafted = (make_ar(DraftContext(runtime, Settings(drafter=name))) for name in ("none", "auto"))
    text = "".join(chunk.text for chunk in plain.complete(request_, Deadline()))
    assert "".join(chunk.text for chunk in drafted.complete(request_, Deadline())) == text


@needs_coder
@pytest.mark.parametrize("drafter", ["auto", "mix"])
def test_it_drafts_beside_ngrams_unless_others_are_named(runtime, drafter):
    engine = make_ar(DraftContext(runtime, Settings(drafter=drafter)))
    assert [drafter.name for drafter in engine.speculation.drafters] == ["ngram", "diffusion"]
