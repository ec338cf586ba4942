"""The loss of true middles under int8 products, each alone and all together."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bench.loss import NAMES, Coder, Row, measure, table
from bench.quality import Span
from fimserver.engine.engines import ModelPool
from fimserver.engine.forward import int8

pytestmark = pytest.mark.skipif(not int8.is_exact(), reason="this processor has no exact int8 products")
SPAN = Span("one", "line", "a.py", "def add(a, b):\n    ", "return a + b", "\n\n\nprint(add(1, 2))\n")
OTHER = Span("two", "line", "b.py", "class A:\n    def size(self):\n        ", "return self._size", "\n")


@pytest.fixture
def coder() -> Coder:
    return Coder("nano")


def test_the_loss_is_that_of_the_library(coder: Coder, nano: ModelPool):
    logits, middle = coder.logits(coder.arm("bf16"), SPAN)
    assert coder.vocabulary.decode(middle) == SPAN.middle
    request_ids = nano.runtime(nano.card("ar")).loaded.model
    prompt = _prompt(coder)
    with torch.inference_mode():
        known = request_ids(input_ids=torch.tensor([[*prompt, *middle]]), use_cache=False).logits
    wanted = F.cross_entropy(known[0, len(prompt) - 1 : -1].float(), torch.tensor(middle))
    assert float(F.cross_entropy(logits, torch.tensor(middle))) == pytest.approx(float(wanted), abs=0.1)


def _prompt(coder: Coder) -> list[int]:
    """The ids before the middle, from what the network was given."""
    seen: list[list[int]] = []
    network = coder.arm("int8")
    forward = network.forward
    network.forward = lambda ids, *rest: (seen.append(ids[0].tolist()), forward(ids, *rest))[1]  # type: ignore[method-assign]
    _, middle = coder.logits(network, SPAN)
    return seen[0][: len(seen[0]) - len(middle) + 1]


def test_each_arm_changes_the_products_that_it_names(coder: Coder):
    coder.calibrate([SPAN, OTHER])
    assert {name for _, name in coder.ranges} == set(NAMES)
    arms = ["bf16", "int8", *(f"int8 but {name}" for name in NAMES), "weights", "smooth", "smooth down"]
    networks = {arm: coder.arm(arm) for arm in arms}
    rows = [row for span in (SPAN, OTHER) for row in measure(coder, span, networks)]
    losses = {row.arm: row.nats for row in rows if row.span == "one"}
    assert len(set(losses.values())) == len(arms)
    assert all(abs(nats - losses["bf16"]) < 0.1 * losses["bf16"] for nats in losses.values())
    assert all(row.alike == row.tokens and row.kl == 0 for row in rows if row.arm == "bf16")
    assert all(0 < row.kl < row.tokens for row in rows if row.arm != "bf16")


def test_an_unknown_arm_is_one_line(coder: Coder):
    with pytest.raises(SystemExit, match="there is no arm 'int8 but norm'"):
        coder.arm("int8 but norm")


def test_the_table_has_the_difference_a_token():
    rows = [
        Row(str(n), arm, nats, 4, alike, kl)
        for n in range(3)
        for arm, nats, alike, kl in (("bf16", 8.0, 4, 0.0), ("int8", 8.4, 3, 0.2))
    ]
    lines = table(rows).splitlines()
    assert lines[2] == "| bf16 | 3, 12 | 2.0000 |  |  | 100.0% [100.0, 100.0] |"
    assert (
        lines[3]
        == "| int8 | 3, 12 | 2.1000 | 0.1000 [0.1000, 0.1000] | 0.0500 [0.0500, 0.0500] | 75.0% [75.0, 75.0] |"
    )
