"""Estimated memory of a model on a GPU, and the error if it does not fit, for cards of every size."""

import pytest
import torch
import transformers

from bench.gpu.shapes import QWEN_7B
from fimserver.cards import get_card, read_cards
from fimserver.engine import load
from fimserver.engine.memory_plan import plan, require_memory
from fimserver.errors import LoadError
from tests.tiny import make_card, make_checkpoint

CONFIG_7B = transformers.Qwen2Config(
    vocab_size=152064, hidden_size=3584, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4
)
LLADA2_MINI = transformers.Glm4MoeConfig(
    vocab_size=157184, hidden_size=2048, num_hidden_layers=20, num_attention_heads=16, num_key_value_heads=4,
    head_dim=128, n_routed_experts=256,
)  # fmt: skip
CODER = get_card("qwen2.5-coder-7b")


def test_the_parts_of_a_known_model_add_up():
    """Qwen2.5-Coder-7B: 14.2 GiB of weights, 56 KiB of keys and values a position and branch."""
    needed = plan(CODER, CONFIG_7B, "none")
    assert needed.weights_gib == pytest.approx(QWEN_7B.weight_bytes / 2**30, rel=0.01)
    positions = CODER.prompt_tokens + CODER.max_new_tokens + 32
    assert needed.kv_gib == pytest.approx(3 * positions * QWEN_7B.kv_bytes / 2**30, rel=0.01)
    assert needed.total_gib == needed.weights_gib + needed.kv_gib + needed.passes_gib
    assert 14.5 < needed.total_gib < 17


def test_fewer_bits_need_less():
    totals = [plan(CODER, CONFIG_7B, name).total_gib for name in ("bf16", "int8", "int4")]
    assert totals == sorted(totals, reverse=True)
    assert totals[1] < 0.65 * totals[0]
    assert totals[2] < 0.45 * totals[0]


def complaint(free_gib, arithmetic="none", card=CODER, config=CONFIG_7B):
    with pytest.raises(LoadError) as caught:
        require_memory(card, config, arithmetic, free_gib)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("free_gib", [[], [24.0], [80.0], [10.0, 10.0]])
def test_what_fits_is_loaded(free_gib):
    """No GPU, one that is large enough, two that are large enough together."""
    require_memory(CODER, CONFIG_7B, "none", free_gib)


def test_a_card_of_12_gib_is_advised_int8_or_a_smaller_model():
    text = complaint([11.9])
    assert text.startswith("qwen2.5-coder-7b needs 1")
    assert "this card has 11.9 GiB free" in text
    assert "use --quantize int8 (" in text
    assert text.endswith(" or qwen2.5-coder-1.5b")


def test_a_card_of_8_gib_is_advised_int4():
    text = complaint([7.6])
    assert "use --quantize int4 (" in text
    assert "int8" not in text


def test_a_small_card_is_advised_a_smaller_model_alone():
    assert complaint([3.0]).endswith("free: use qwen2.5-coder-0.5b")


def test_nothing_is_advised_that_does_not_fit_either():
    for gib in (1.5, 4.0, 7.0, 9.0, 12.0):
        for name in ("int8", "int4"):
            if f"--quantize {name} " in complaint([gib]):
                assert plan(CODER, CONFIG_7B, name).total_gib <= gib


def test_int8_that_does_not_fit_is_not_advised_again():
    text = complaint([7.0], "int8")
    assert "--quantize int4" in text
    assert "int8" not in text


def test_quantised_weights_are_not_spread_over_several_cards():
    complaint([5.0, 24.0], "int8")


def test_experts_are_not_advised_to_be_quantised():
    """torchao would leave their weights in 16 bits, and they are nearly all there is."""
    text = complaint([24.0], card=read_cards()["llada2.0-mini"], config=LLADA2_MINI)
    assert text.startswith("llada2.0-mini needs 3")
    assert "quantize" not in text


def test_a_model_that_sees_both_ways_is_planned_too():
    text = complaint([12.0], card=read_cards()["dreamon-7b"])
    assert "dreamon-7b needs 1" in text
    assert "--quantize int8" in text


def test_no_weights_are_read_for_a_model_that_does_not_fit(tmp_path, monkeypatch):
    """The device is not touched: this machine has none."""
    monkeypatch.setattr("fimserver.engine.load.free_gibs", lambda _device: [0.1])
    monkeypatch.setattr(
        "fimserver.engine.load.native_model", lambda *_args: pytest.fail("weights are being read")
    )
    folder = make_checkpoint(tmp_path / "tiny", "qwen2")
    with pytest.raises(LoadError, match=r"tiny needs 0\.\d GiB .*this card has 0\.1 GiB free"):
        load.load(make_card("qwen2"), folder, torch.device("cuda"))
