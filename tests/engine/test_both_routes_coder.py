"""Both routes of the 0.5B coder with its adapter, if its weights are on this machine."""

from dataclasses import replace

import pytest
import torch

from fimserver.cards import model_folder
from fimserver.engine.engines import make_ar, make_dllm
from fimserver.engine.load import load
from fimserver.engine.runtime import DraftContext, make_runtime
from fimserver.settings import Settings
from fimserver.types import Deadline
from tests.coder import MODELS, needs_coder
from tests.engine.test_adapter_coder import CARD, REQUEST

pytestmark = needs_coder


@pytest.mark.parametrize("cut", ["        return ", "    with open("])
def test_the_dllm_route_writes_what_the_ar_route_writes(cut):
    """With the adapter and the schedule of the card, in no more passes than tokens."""
    runtime = make_runtime(load(CARD, model_folder(CARD, MODELS), torch.device("cpu"), "int8"), Settings())
    context = DraftContext(runtime, Settings(drafter="none"))
    prefix = REQUEST.prefix[: REQUEST.prefix.index(cut) + len(cut)]
    request = replace(REQUEST, prefix=prefix).with_sampling(max_tokens=24)
    expected = list(make_ar(context).complete(request, Deadline()))
    chunks = list(make_dllm(context).complete(request, Deadline()))
    assert "".join(c.text for c in chunks) == "".join(c.text for c in expected)
    assert chunks[-1].forwards - chunks[-1].prefill.forwards <= chunks[-1].tokens
