"""Several drafts of a canvas adapter: the best of more is never shorter; the first is the drafter's own."""

import torch

from bench.canvas_branches import DRAFTS, Row, accepted, draft, likeliest, measure, second_at, table
from bench.canvas_drafts import make_arm
from bench.quality import Span
from fimserver.engine.speculation.lookahead import Prepared
from tests.engine.forward.test_adapter import folder, runtime_of  # noqa: F401 - the fixture
from tests.engine.test_autoregressive import CODE


def engines(folder):  # noqa: F811
    runtime = runtime_of(folder)
    adapter = str(folder / "adapters" / "canvas.safetensors")
    return make_arm(runtime, "lookahead", adapter, 0.0), make_arm(runtime, "none", "", 0.0)


def test_more_drafts_are_never_worse(folder):  # noqa: F811
    engine, plain = engines(folder)
    row = measure(engine, plain, Span("1", "block", "a.py", CODE[:90], CODE[90:99], CODE[99:]))
    assert row
    assert row.places > 0
    assert row.second[0] == row.drawn[0]
    for best in (row.second, row.drawn):
        assert list(best) == sorted(best)


def test_the_second_token_of_the_least_certain_place_is_found(folder):  # noqa: F811
    engine, _ = engines(folder)
    ahead = engine.speculation.lookahead
    width, words = ahead.network.adapter.mask.shape[0], ahead.network.vocab_size
    generator = torch.Generator().manual_seed(2)
    prepared = Prepared(
        0, torch.randn(2, width, generator=generator), torch.randn(2, words, generator=generator)
    )
    first, sure = draft(ahead, prepared, 5, likeliest)
    least = min((0, 1), key=lambda place: sure[place])
    other, _ = draft(ahead, prepared, 5, second_at(least))
    assert other[least] != first[least]
    best = accepted(ahead, prepared, [5, *other], generator)["second"]
    assert best[0] == least
    assert best[1:] == [2] * (DRAFTS - 1)


def test_the_table_has_what_more_drafts_add():
    rows = [Row("1", 10, (5, 6, 6), (5, 5, 7)), Row("2", 10, (5, 6, 6), (5, 5, 7))]
    lines = table(rows).splitlines()
    assert lines[3] == "| 2 | second | 0.60 [0.60, 0.60] | 0.10 [0.10, 0.10] |"
    assert lines[-1] == "| 3 | drawn | 0.70 [0.70, 0.70] | 0.20 [0.20, 0.20] |"
