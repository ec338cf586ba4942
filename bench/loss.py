"""Measure how int8 products change a coder's loss on true middles, and which products cause it.

python -m bench.loss FILE ROWS --spans SPANS --arms ARM... [--limit N]      add rows, one a span
python -m bench.loss FILE ROWS                                              print the table of what is there

SPANS are of ``bench.quality cut``. FILE is a GGUF file; every arm is our own pass over the same dequantised
weights. Arms: ``bf16`` (all products in bf16), ``int8`` (as the engine runs), ``int8 but NAME`` (the products
of one name, qkv, out, gate_up, down or head, in bf16), ``weights`` (int8 weights, activations not quantised),
``smooth`` (channels of activations scaled before they are quantised, SmoothQuant, arXiv 2211.10438),
``smooth NAME`` (those of one name). The loss is the mean negative log probability of the tokens of the true
middles, in nats a token. KL: divergence of an arm's next token from that of ``bf16``, in nats a token, which
tells arms apart with far fewer spans.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from bench.intervals import bootstrap, ratio_of_sums
from bench.quality import Span, percent, read_spans
from fimserver.cards import Card, model_folder
from fimserver.engine.forward.fused import FusedModel
from fimserver.engine.forward.int8 import Int8Linear, quantize_weight
from fimserver.engine.forward.kv import KVBuffer
from fimserver.engine.forward.layers import Linear
from fimserver.engine.int8_model import int8_weights
from fimserver.engine.load import files_hash
from fimserver.engine.prompts.healing import TokenHealing
from fimserver.engine.prompts.prompt import cut_context, fim_prompt
from fimserver.engine.prompts.vocabulary import Vocabulary
from fimserver.engine.weights.by_path import find_card
from fimserver.engine.weights.checkpoint import Checkpoint
from fimserver.engine.weights.formats import format_of
from fimserver.engine.weights.int8_cache import _PRODUCTS, Int8Checkpoint, int8_checkpoint
from fimserver.settings import Settings
from fimserver.types import Request

NAMES = ("qkv", "out", "gate_up", "down", "head")
PROMPT_TOKENS, MIDDLE_TOKENS = 512, 64
STRENGTH = 0.5  # of smoothing: how much of an activation's range goes to the weights
CALIBRATION = 8  # spans, of those that are not measured
Key = tuple[int, str]  # layer, name of the product; the head's layer is 0


@dataclass(frozen=True)
class Row:
    """One middle under one arm."""

    span: str
    arm: str
    nats: float  # of all its tokens together
    tokens: int
    alike: int  # of the tokens, those where the likeliest one is that of ``bf16``
    kl: float  # nats of all tokens together


class Coder:
    """A coder with the products of any arm."""

    def __init__(self, file: str) -> None:
        self.card: Card = find_card(file)
        folder = model_folder(self.card, Settings().models_dir)
        weights = format_of(self.card, folder)
        assert weights is not None
        self.read = functools.cache(lambda: weights.read(self.card, folder))
        digest = files_hash(weights.files(self.card, folder))
        self.kept: Int8Checkpoint = int8_checkpoint(digest, self.read)
        self.vocabulary = Vocabulary(self.kept.tokenizer, self.card)
        self.healing = TokenHealing(self.vocabulary)
        self.capacity = PROMPT_TOKENS + 2 * MIDDLE_TOKENS
        self.int8 = FusedModel(int8_weights(self.kept), self.capacity)
        self.ranges: dict[Key, torch.Tensor] = {}  # largest activations (in,) of each product

    def arm(self, name: str) -> FusedModel:
        """The network of an arm."""
        match name.split(" "):
            case ["int8"]:
                return self.int8
            case ["int8", "but", product] if product in NAMES:
                return self.changed(lambda key, old: self.bf16(key) if key[1] == product else old)
            case ["bf16"]:
                return self.changed(lambda key, _old: self.bf16(key))
            case ["weights"]:
                return self.changed(lambda key, _old: self.dequantised(key))
            case ["smooth", *some] if set(some) <= set(NAMES):
                chosen = some or NAMES
                return self.changed(lambda key, old: self.smooth(key) if key[1] in chosen else old)
        raise SystemExit(f"there is no arm {name!r}: see --help")

    def changed(self, change: Callable[[Key, Linear], Linear]) -> FusedModel:
        """The int8 network, each product replaced."""
        network = self.int8.wrapped(lambda layer, name, old: change((layer, name), old))
        network.head = change((0, "head"), self.int8.head)
        return network

    @functools.cache  # noqa: B019 - one coder a process
    def bf16(self, key: Key) -> Linear:
        weight, bias = self.weight(key).bfloat16(), self.bias(key)
        return lambda x: _biased(F.linear(x.bfloat16(), weight).float(), bias)

    def dequantised(self, key: Key) -> Linear:
        values, scales = quantize_weight([self.weight(key)])
        weight, bias = values.float() * scales[:, None], self.bias(key)
        return lambda x: F.linear(x, weight, bias)

    @functools.cache  # noqa: B019 - one coder a process
    def smooth(self, key: Key) -> Linear:
        weight, x_range = self.weight(key), self.ranges[key].clamp_min(1e-6)
        by = (x_range**STRENGTH / weight.abs().amax(0).clamp_min(1e-6) ** (1 - STRENGTH)).clamp(1e-3, 1e3)
        product = Int8Linear(*quantize_weight([weight * by]), self.bias(key))
        return lambda x: product(x / by)

    def weight(self, key: Key) -> torch.Tensor:
        """A matrix (out, in) in fp32, as it is in the file."""
        checkpoint: Checkpoint = self.read()
        layer, name = key
        if name == "head":
            tied = bool(checkpoint.config.tie_word_embeddings)
            return checkpoint.tensor("model.embed_tokens.weight" if tied else "lm_head.weight")
        parts = [f"model.layers.{layer}.{part}.weight" for part in _PRODUCTS[name]]
        return torch.cat([checkpoint.tensor(part) for part in parts])

    def bias(self, key: Key) -> torch.Tensor | None:
        return self.kept.tensors.get(f"{key[0]}.{key[1]}.bias")

    def calibrate(self, spans: Sequence[Span]) -> None:
        """Note the largest activation of each channel while the prompts of ``spans`` are read."""

        def watch(key: Key, old: Linear) -> Linear:
            def product(x: torch.Tensor) -> torch.Tensor:
                largest = x.abs().amax(0)
                self.ranges[key] = torch.maximum(self.ranges.get(key, largest), largest)
                return old(x)

            return product

        network = self.changed(watch)
        for span in spans:
            self.logits(network, span)

    @torch.inference_mode()
    def logits(self, network: FusedModel, span: Span) -> tuple[torch.Tensor, list[int]]:
        """Logits (T, V) of the T tokens of a true middle, and the tokens."""
        request = Request(span.prefix, span.suffix, path=span.path)
        context = cut_context(request, self.card, self.vocabulary, tokens=PROMPT_TOKENS)
        assert self.card.fim is not None
        prompt = fim_prompt(context, self.card.fim, self.vocabulary)
        middle = self.vocabulary.encode(span.middle)[:MIDDLE_TOKENS]
        ids = [*prompt, *middle[:-1]]
        kv = KVBuffer(len(ids))
        mask = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
        wanted = torch.arange(len(prompt) - 1, len(ids))
        return network.forward(torch.tensor([ids]), mask, kv, wanted)[0], middle


def _biased(y: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return y if bias is None else y + bias


def measure(coder: Coder, span: Span, networks: Mapping[str, FusedModel]) -> list[Row]:
    """All arms on one middle. The first is the one whose likeliest tokens are compared with."""
    rows: list[Row] = []
    reference = torch.empty(0)
    for arm, network in networks.items():
        logits, middle = coder.logits(network, span)
        log_probs = logits.float().log_softmax(-1)
        reference = reference if rows else log_probs
        nats = float(F.nll_loss(log_probs, torch.tensor(middle), reduction="sum"))
        alike = int((log_probs.argmax(-1) == reference.argmax(-1)).sum())
        kl = float(F.kl_div(log_probs, reference, reduction="sum", log_target=True))
        rows.append(Row(span.id, arm, nats, len(middle), alike, kl))
    return rows


def table(rows: Sequence[Row]) -> str:
    """A table in Markdown: each arm beside the first, over the spans that it has."""
    arms = list(dict.fromkeys(row.arm for row in rows))
    first = {row.span: row for row in rows if row.arm == arms[0]}
    lines = [
        "| products | spans, tokens | loss | difference | KL | likeliest token alike |\n" + "|---" * 6 + "|"
    ]
    for arm in arms:
        some = [row for row in rows if row.arm == arm and row.span in first]
        counts = [float(row.tokens) for row in some]
        loss = sum(row.nats for row in some) / sum(counts)
        more = [row.nats - first[row.span].nats for row in some]
        difference = bootstrap(ratio_of_sums, more, counts).text(4) if arm != arms[0] else ""
        alike = bootstrap(ratio_of_sums, [float(row.alike) for row in some], counts)
        size = f"{len(some)}, {sum(counts):.0f}"
        kl = bootstrap(ratio_of_sums, [row.kl for row in some], counts).text(4) if arm != arms[0] else ""
        lines.append(f"| {arm} | {size} | {loss:.4f} | {difference} | {kl} | {percent(alike)} |")
    return "\n".join(lines)


def read_rows(path: Path) -> list[Row]:
    lines = path.read_text("utf-8").split("\n")[:-1] if path.exists() else []
    return [Row(**json.loads(line)) for line in lines]


def run(args: argparse.Namespace) -> None:
    """Add the rows that are missing."""
    spans = read_spans(args.spans)
    measured, calibrating = spans[: args.limit], spans[-CALIBRATION:]
    done = {(row.span, row.arm) for row in read_rows(args.rows)}
    arms = ["bf16", *args.arms]
    coder = Coder(args.file)
    if any(arm.startswith("smooth") for arm in arms):
        coder.calibrate(calibrating)
    networks = {arm: coder.arm(arm) for arm in arms}
    with args.rows.open("a", encoding="utf-8") as out:
        for span in measured:
            if any((span.id, arm) not in done for arm in arms):
                new = [row for row in measure(coder, span, networks) if (row.span, row.arm) not in done]
                out.write("".join(json.dumps(vars(row)) + "\n" for row in new))
                out.flush()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", help="a GGUF file or the name of a card")
    parser.add_argument("rows", type=Path)
    parser.add_argument("--spans", type=Path)
    parser.add_argument("--arms", nargs="+", default=["int8"])
    parser.add_argument("--limit", type=int, default=300)
    args = parser.parse_args()
    if args.spans:
        run(args)
    print(table(read_rows(args.rows)))


if __name__ == "__main__":
    main()
