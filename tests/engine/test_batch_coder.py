"""Requests of several users in one batch on the 0.5B coder: each bit-identical to the request alone."""

import torch

from fimserver.cards import model_folder
from fimserver.engine.engines import make_ar, make_dllm
from fimserver.engine.forward.pass_cost import PassCosts
from fimserver.engine.load import load
from fimserver.engine.runtime import DraftContext, make_runtime
from fimserver.settings import Settings
from fimserver.types import Deadline, Request, Sampling
from tests.coder import MODELS, needs_coder
from tests.engine.forward.test_passes import said, together
from tests.engine.test_adapter_coder import CARD

pytestmark = needs_coder

CODE = "import json\n\n\ndef read(path):\n    with open(path) as file:\n        return json.load(file)\n"
PLACES = ("    with open(", "        return ")
GREEDY = Sampling(6, stop="none")
SAMPLED = Sampling(6, temperature=0.8, top_p=0.95, seed=11, stop="none")
REQUESTS = [
    Request(CODE[: (end := CODE.index(place) + len(place))], CODE[CODE.index("\n", end) :], sampling=sampling)
    for place in PLACES
    for sampling in (GREEDY, SAMPLED)
]
# A document that repeats itself, so that drafts are long and right.
REQUESTS.append(
    Request(
        "\n".join(f"self.value_{i} = value_{i}" for i in range(8)) + "\nself.value_8", "\n", sampling=GREEDY
    )
)


def test_texts_with_drafts_and_canvases_are_those_alone():
    runtime = make_runtime(load(CARD, model_folder(CARD, MODELS), torch.device("cpu"), "int8"), Settings())
    assert runtime.network.joins
    ar = make_ar(DraftContext(runtime, Settings(drafter="ngram")))
    policy = ar.speculation.policy
    policy.costs = PassCosts(dict.fromkeys(policy.costs.ms, 1.0))  # drafts pay, whatever the machine is
    checked = make_dllm(DraftContext(runtime, Settings(schedule="checked:0.005")))
    dllm = make_dllm(DraftContext(runtime, Settings(schedule="leftmost")))
    asked = [
        *((ar, request) for request in REQUESTS),
        *((dllm, request) for request in REQUESTS[:1]),
        *((checked, request) for request in REQUESTS[1:]),
    ]
    wanted = []
    for engine, request in asked:
        ar.cache.clear()
        wanted.append(said(list(engine.complete(request, Deadline()))))
    ar.cache.clear()
    chunks, companies = together([engine.steps(request, Deadline()) for engine, request in asked])
    assert [said(each) for each in chunks] == wanted
    assert max(companies) > 1
    drafted = [chunk[-1].drafting for chunk in chunks[: len(REQUESTS)]]
    assert sum(sum(each.accepted) for each in drafted) > 0
