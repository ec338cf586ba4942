"""A block drafter of the real sizes, with random weights, on the 0.5B coder: it changes no text."""

import pytest
import torch

from fimserver.cards import MODELS as PACKAGE
from fimserver.cards import get_card, model_folder
from fimserver.engine.drafters.nets import BlockNetwork, BlockShape, save_net
from fimserver.engine.engines import make_ar
from fimserver.engine.forward.pass_cost import PassCosts
from fimserver.engine.load import load, weights_hash
from fimserver.engine.runtime import DraftContext, make_runtime
from fimserver.settings import Settings
from fimserver.types import Deadline, Request, Sampling
from tests.coder import MODELS, NAME, needs_coder
from tests.engine.forward.test_passes import said, together

CARD = get_card(NAME)
CODE = (
    "import json\n\n\nclass Store:\n    def __init__(self, path):\n        self.path = path\n"
    "        self.items = {}\n\n    def load(self):\n        "
)
REQUESTS = [
    Request(CODE, "\n", sampling=Sampling(max_tokens=16, stop="none", temperature=temperature, seed=3))
    for temperature in (0.0, 0.7)
]

pytestmark = needs_coder


@pytest.fixture(scope="module")
def runtime():
    return make_runtime(load(CARD, model_folder(CARD, MODELS), torch.device("cpu"), "int8"), Settings())


@pytest.fixture(scope="module")
def file(runtime, tmp_path_factory):
    torch.manual_seed(0)
    sizes = {"hidden": 896, "heads": 14, "kv_heads": 2, "head_dim": 64, "mlp": 768, "words": 8192}
    net = BlockNetwork(BlockShape((15, 23), 7, **sizes, normed=True, sees_token=True, sampler=128))
    with torch.no_grad():
        net.outward.normal_(0, 0.01)
    net.words = torch.arange(0, 16384, 2, dtype=torch.int32)
    path = tmp_path_factory.mktemp("block") / "block.safetensors"
    save_net(net, path, weights_hash(runtime.loaded.folder))
    assert path.stat().st_size < 20_000_000
    return path


@pytest.mark.parametrize("others", ["", "ngram,"])
def test_texts_stay_as_they_are(runtime, file, others):
    plain = make_ar(DraftContext(runtime, Settings(drafter="none")))
    wanted = [said(list(plain.complete(request, Deadline()))) for request in REQUESTS]
    engine = make_ar(DraftContext(runtime, Settings(drafter=f"{others}diffusion:{file}")))
    policy = engine.speculation.policy
    policy.costs = PassCosts(dict.fromkeys(policy.costs.ms, 1.0))
    policy.costs.observe = lambda *_: None
    policy.asks = lambda *_: True
    assert runtime.canvas_network is not runtime.network  # the canvas adapter is loaded
    assert [said(list(engine.complete(request, Deadline()))) for request in REQUESTS] == wanted
    assert policy.accounts[engine.speculation.drafters[-1].name].asked > 10
    chunks, _ = together([engine.steps(request, Deadline()) for request in REQUESTS])
    assert [said(each) for each in chunks] == wanted


def test_the_card_names_no_file_that_is_not_there():
    named = [name for kind, name in CARD.drafters.items() if kind != "default"]
    assert all((PACKAGE / "adapters" / name).is_file() for name in named)
