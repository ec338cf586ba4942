"""A block drafter over batches of packed texts: what it learns is what it will see and draft in use."""

import json
import sys
from dataclasses import replace

import gguf
import pytest
import torch
from safetensors.torch import load_file

from fimserver.engine.drafters.nets import BlockNetwork, BlockShape, load_net
from models.training import block, losses
from models.training.block_batches import Anchors, Base, draw_anchors, follow, losses_of, new_block, outputs
from models.training.canvas_batches import collate, read
from models.training.canvas_data import FIRST_DRAFT, Example
from models.training.canvas_model import Coder
from models.training.packed import BASE, TEXTS, VALID, Texts
from tests.training.small_coder import small_coder

VOCABULARY = 40
WINDOW = 4
SHAPE = BlockShape(
    (0, 1), WINDOW, 32, 4, 2, 8, 24, words=30, normed=True, sees_token=True, sampler=4
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return small_coder(VOCABULARY)


@pytest.fixture(scope="module")
def base(model):
    rope = model.model.rotary_emb(torch.zeros(1), torch.arange(200)[None])
    return Base.of(Coder(model, "cpu", torch.float32), (rope[0][0], rope[1][0]), torch.arange(0, 30))


@pytest.fixture(scope="module")
def texts(base):
    """Texts in which most tokens are what the coder would have written; ids of the full vocabulary: times 3."""
    generator = torch.Generator().manual_seed(2)
    examples = []
    for length in (70, 48, 61, 90):
        ids = torch.randint(VOCABULARY, (length,), generator=generator).tolist()
        for place in range(20, length):
            if torch.rand((), generator=generator) < 0.8:
                ids[place] = int(base.coder.logits(base.coder.clean(ids[:place]).hidden[-1:]).argmax())
        examples.append(Example(tuple(3 * token for token in ids), length - 20, 3))
    return Texts.of(examples, 3 * torch.arange(VOCABULARY), "base")


@pytest.fixture
def batch(texts):
    return collate(texts, range(len(texts)))


def net_of(base, texts, batch):
    torch.manual_seed(3)
    net = new_block(base, SHAPE, texts.kept, read(base.coder, batch))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return net


def test_anchors_are_in_prefix_and_middle_alone(batch):
    every = draw_anchors(batch, 1000)
    pairs = list(zip(every.row.tolist(), every.at.tolist(), strict=True))
    assert pairs == [
        (row, at) for row, length in enumerate(batch.length.tolist())
        for at in range(3 + FIRST_DRAFT, length - 1)
    ]  # fmt: skip
    some = draw_anchors(batch, 10, torch.Generator().manual_seed(1))
    assert len(some.at) == 10
    assert set(zip(some.row.tolist(), some.at.tolist(), strict=True)) < set(pairs)


def test_a_window_ends_where_the_text_is_not_the_coders_own(base, texts, batch):
    seen = read(base.coder, batch)
    anchors = draw_anchors(batch, 1000)
    followed = follow(base, batch, seen, anchors, WINDOW)
    for n in range(0, len(anchors.at), 7):
        row, at = int(anchors.row[n]), int(anchors.at[n])
        ids = batch.ids[row, : batch.length[row]].tolist()
        learned = []
        for place in range(at, min(at + WINDOW, len(ids) - 1)):
            own = int(base.coder.logits(base.coder.clean(ids[: place + 1]).hidden[-1:]).argmax())
            learned.append(own)
            if ids[place + 1] != own:
                break
        reached = followed.reached[n].tolist()
        assert reached == [i < len(learned) for i in range(WINDOW)]
        drafted = [own if own < 30 else -1 for own in learned]
        assert followed.own[n, : len(learned)].tolist() == drafted
        known = drafted.index(-1) if -1 in drafted else len(drafted)
        assert followed.learn[n].tolist() == [i < known for i in range(WINDOW)]


def test_bf16_gives_about_the_same(model, base, texts, batch):
    net = net_of(base, texts, batch)
    anchors = draw_anchors(batch, 1000)
    rope = tuple(base.rope)
    half = Base.of(Coder(model, "cpu", torch.bfloat16), rope, torch.arange(0, 30))
    seen = read(base.coder, batch)
    close = seen._replace(kv=seen.kv.bfloat16(), hidden=seen.hidden.bfloat16())
    whole = outputs(net, base, batch, seen, anchors)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = outputs(net, half, batch, close, anchors)
    assert (whole - rounded).norm() / whole.norm() < 0.03


def test_a_slot_sees_what_it_sees_in_use(base, texts, batch):
    """The same outputs as one window after the keys and values of a text that ends at the anchor."""
    net = net_of(base, texts, batch)
    row, at = 2, 41
    seen = read(base.coder, batch)
    anchors = Anchors(torch.tensor([0, row]), torch.tensor([25, at]))
    ours = outputs(net, base, batch, seen, anchors)[1]
    ids = batch.ids[row, :at].tolist()
    clean = base.coder.clean(ids)

    class Before:
        def update(self, keys, values, index, /):
            text = clean.kv[net.shape.borrowed[index]]
            return torch.cat([text[0][None], keys], 2), torch.cat([text[1][None], values], 2)

    width = WINDOW + 1
    masked = torch.tensor([[False] + [True] * WINDOW])
    token = base.coder.embedding[batch.ids[row, at]].expand(1, width, -1)
    x = net.inputs(clean.hidden[-1:], token, masked)[0]
    rope = tuple(t[at : at + width, None] for t in base.rope)
    stack = net.stack(width, pack=False)
    theirs = net.run(stack, x, rope, x.new_zeros(width, at + width), Before())[1:]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("streak", [False, True])
def test_every_weight_learns_and_drafts_get_longer(base, texts, batch, streak):
    net = net_of(base, texts, batch)
    seen = read(base.coder, batch)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    every = []
    for _ in range(30):
        loss, values = losses_of(net, base, batch, seen, draw_anchors(batch, 1000), streak=streak)
        optimiser.zero_grad()
        loss.backward()
        if not every:
            names = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
            assert names == []
        optimiser.step()
        every.append((float(loss.detach()), float(values["right"].sum())))
        assert torch.equal(values["reached"][0], values["plain_reached"][0])
    assert every[-1][0] < every[0][0]
    assert every[-1][1] > every[0][1]


def test_shares_are_conditional_and_tokens_their_products():
    counts = {"reached": torch.tensor([10.0, 4.0, 0.0]), "right": torch.tensor([5.0, 1.0, 0.0])}
    assert block.by_slot(counts) == {"at": [0.5, 0.25, 0.0], "tokens": 0.625}


@pytest.fixture
def packed(model, texts, tmp_path):
    """A packed base of the tiny coder."""
    writer = gguf.GGUFWriter(tmp_path / BASE, "qwen2")
    writer.add_block_count(2)
    writer.add_context_length(256)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    for name, tensor in model.state_dict().items():
        writer.add_tensor(gguf_name(name), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for name in (TEXTS, VALID):
        texts.save(tmp_path / name)
    return tmp_path


def gguf_name(name):
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "model.layers": "blk", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    for ours, theirs in names.items():
        name = name.replace(ours, theirs)
    return name


def command(packed, out, monkeypatch, *more):
    options = [
        "--packed",
        str(packed),
        "--out",
        str(out),
        "--borrowed",
        "0,1",
        "--mlp",
        "24",
        "--words",
        "30",
    ]
    options += ["--window", "4", "--sampler", "4", "--rows", "2", "--max-steps", "4", "--minutes", "600"]
    monkeypatch.setattr(sys, "argv", ["block", *options, "--device", "cpu", *more])
    block.main()
    parts = sorted(out.glob("block.part*"))
    whole = out / "whole.safetensors"
    whole.write_bytes(b"".join(part.read_bytes() for part in parts))
    return whole, len(parts), [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_the_command_writes_a_file_that_loads(packed, tmp_path, monkeypatch):
    monkeypatch.setattr("models.training.parts.PART_BYTES", 20_000)
    monkeypatch.setattr(block, "LOG_EVERY", 2)
    whole, parts, lines = command(packed, tmp_path / "out", monkeypatch)
    assert parts > 1
    net = load_net(BlockNetwork, whole, "base")
    assert len(net.words) == 30
    assert set(net.words.tolist()) <= {3 * token for token in range(VOCABULARY)}
    assert net.words.tolist() == sorted(net.words.tolist())
    assert load_file(whole)["see.weight"].dtype == torch.bfloat16
    assert [line["step"] for line in lines] == [2, 4, 4]
    assert len(lines[-1]["valid"]["at"]) == 4


def test_it_goes_on_from_a_file(packed, tmp_path, monkeypatch):
    first, _, _ = command(packed, tmp_path / "first", monkeypatch)
    again, _, _ = command(
        packed, tmp_path / "second", monkeypatch, "--init", str(first), "--lr", "0", "--seed", "8"
    )
    ours, theirs = load_file(first), load_file(again)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(SystemExit, match="other words"):
        command(packed, tmp_path / "third", monkeypatch, "--init", str(first), "--words", "29")


def test_texts_without_anchors_are_left_out(packed, texts, tmp_path, monkeypatch):
    """Batches have texts of about the same length, so that some have no anchor at all."""
    short = Example(tuple(3 * token for token in range(30)), 24, 20)
    # What is packed are places in ``kept``.
    long = [replace(texts[n], ids=tuple(3 * token for token in texts[n].ids)) for n in range(4)]
    mixed = Texts.of([*long, *[short] * 4], 3 * torch.arange(VOCABULARY), "base")
    for name in (TEXTS, VALID):
        mixed.save(packed / name)
    monkeypatch.setattr(block, "LOG_EVERY", 1)
    _, _, lines = command(packed, tmp_path / "out", monkeypatch)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4]
    assert all(line["loss"] > 0 for line in lines[:-1])


def test_nothing_to_learn_is_no_loss():
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    assert losses.decayed(torch.ones(2, 3), nothing, 4.0) == 0
