"""Reference of block diffusion, written from its descriptions: a network without cache, and the loops of the samplers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

Logits = Callable[[Sequence[int]], torch.Tensor]


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def rotate(x: torch.Tensor, theta: float, size: int) -> torch.Tensor:
    """Rotary positions on the first ``size`` components of (heads, T, D), halves paired."""
    angles = torch.outer(
        torch.arange(x.shape[1]).float(), 1 / theta ** (torch.arange(0, size, 2).float() / size)
    )
    low, high, rest = x[..., : size // 2], x[..., size // 2 : size], x[..., size:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([low * cos - high * sin, low * sin + high * cos, rest], -1)


def block_mask(count: int, block: int) -> torch.Tensor:
    """True where a row may look: at its own block and those before it."""
    number = torch.arange(count).div(block, rounding_mode="floor")
    return number[None, :] <= number[:, None]


def attention(
    w: dict[str, torch.Tensor], config: dict[str, Any], h: torch.Tensor, block: int
) -> torch.Tensor:
    """Grouped-query attention under the names of Qwen2, Qwen3 and Llama."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    theta, eps = float(config["rope_theta"]), config["rms_norm_eps"]

    def project(name: str, count: int) -> torch.Tensor:
        out = h @ w[f"self_attn.{name}_proj.weight"].T + w.get(f"self_attn.{name}_proj.bias", 0.0)
        out = out.view(-1, count, size).transpose(0, 1)
        weight = w.get(f"self_attn.{name}_norm.weight")
        return out if weight is None else norm(out, weight, eps)

    q = rotate(project("q", heads), theta, size)
    k = rotate(project("k", kv_heads), theta, size).repeat_interleave(heads // kv_heads, 0)
    v = project("v", kv_heads).repeat_interleave(heads // kv_heads, 0)
    scores = (q @ k.transpose(1, 2) / size**0.5).masked_fill(~block_mask(len(h), block), -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(h), -1) @ w["self_attn.o_proj.weight"].T


def mlp(w: dict[str, torch.Tensor], h: torch.Tensor) -> torch.Tensor:
    return (F.silu(h @ w["gate_proj.weight"].T) * (h @ w["up_proj.weight"].T)) @ w["down_proj.weight"].T


def under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def dense_logits(tensors: dict[str, torch.Tensor], config: dict[str, Any], block: int) -> Logits:
    """Logits (T, V) of a dense network in which each token sees its block and those before it."""
    eps = config["rms_norm_eps"]

    def logits(ids: Sequence[int]) -> torch.Tensor:
        x = tensors["model.embed_tokens.weight"][torch.tensor(ids)]
        for n in range(config["num_hidden_layers"]):
            w = under(tensors, f"model.layers.{n}.")
            x = x + attention(w, config, norm(x, w["input_layernorm.weight"], eps), block)
            x = x + mlp(under(w, "mlp."), norm(x, w["post_attention_layernorm.weight"], eps))
        head = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
        return norm(x, tensors["model.norm.weight"], eps) @ head.T

    return logits


def sample(
    rows: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """A token for each row and its probability, after temperature and nucleus (SDAR's sampler)."""
    if temperature > 0:
        rows = rows / temperature
    if top_p < 1:
        ordered, order = rows.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        rows = rows.masked_fill(torch.zeros_like(before).scatter(1, order, before) > top_p, -torch.inf)
    p = rows.softmax(-1)
    if temperature == 0:
        return p.argmax(-1), p.max(-1).values
    tokens = torch.multinomial(p, 1, True, generator=generator)[:, 0]
    return tokens, p.gather(1, tokens[:, None])[:, 0]


def block_decode(
    logits: Logits,
    prompt: Sequence[int],
    block: int,
    mask: int,
    end: int,
    forbidden: Sequence[int],
    level: float,
    blocks: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    *,
    part: int = 0,
    shift: bool = False,
) -> list[list[int]]:
    """SDAR's ``low_confidence_dynamic`` with as many steps as slots: the new tokens after every step.

    All above ``level``, at least the likeliest; a block that holds ``end`` is the last, and is not filled
    further than needed. With ``part``, only slots of one part of so many tokens at a time, left to right. With
    ``shift`` (Fast-dLLM v2) a row predicts the token after it, and the first token of a whole block comes from
    the finished text.
    """
    text = list(prompt)
    history: list[list[int]] = []

    def fill(x: list[int], places: list[int], rows: torch.Tensor, generator: torch.Generator) -> None:
        rows = rows.clone()
        rows[:, list(forbidden)] = -torch.inf
        tokens, confidence = sample(rows, temperature, top_p, generator)
        taken = [i for i in range(len(places)) if confidence[i] >= level] or [int(confidence.argmax())]
        for i in taken:
            x[places[i]] = int(tokens[i])
        history.append(x[len(prompt) :])

    def over(x: list[int], first: int) -> bool:
        return mask not in x or (end in x[first:] and mask not in x[: x.index(end, first)])

    for _ in range(blocks):
        first = len(text)
        x = text + [mask] * (block - first % block)
        generator = torch.Generator().manual_seed(seed + first - len(prompt))
        if shift and first % block == 0:
            fill(x, [first], logits(text)[-1:], generator)
        for start in range(first // block * block, len(x), part or block):
            while mask in x[start : start + (part or block)] and not over(x, first):
                places = [i for i in range(start, start + (part or block)) if x[i] == mask]
                fill(x, places, logits(x)[[i - int(shift) for i in places]], generator)
        text = x
        if end in x[first:]:
            break
    return history


def edited_decode(
    logits: Logits,
    prompt: Sequence[int],
    block: int,
    mask: int,
    end: int,
    forbidden: Sequence[int],
    level: float,
    edit_level: float,
    reviews: int,
    blocks: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[list[int]]:
    """The sampler of LLaDA 2.1: the new tokens after every step.

    A step predicts the whole block. Masked places are filled as in ``block_decode``; filled ones that are not
    of the prompt take another token whose probability is above ``edit_level``. A block without masks is
    predicted until nothing changes, at most ``reviews`` times. A block that holds ``end`` is the last.
    """
    text = list(prompt)
    history: list[list[int]] = []
    for _ in range(blocks):
        first = len(text)
        x = text + [mask] * (block - first % block)
        generator = torch.Generator().manual_seed(seed + first - len(prompt))
        seen = 0
        while seen <= reviews:
            masked = [i for i in range(first, len(x)) if x[i] == mask]
            filled = [i for i in range(first, len(x)) if x[i] != mask]
            seen += not masked
            if seen > reviews:
                break
            rows = logits(x).clone()
            rows[:, list(forbidden)] = -torch.inf
            changed: dict[int, int] = {}
            if filled:
                tokens, sure = sample(rows[filled], temperature, top_p, generator)
                drawn = zip(filled, tokens.tolist(), sure.tolist(), strict=True)
                changed |= {i: token for i, token, p in drawn if token != x[i] and p > edit_level}
            edits = len(changed)
            if masked:
                tokens, sure = sample(rows[masked], temperature, top_p, generator)
                taken = [i for i in range(len(masked)) if sure[i] >= level] or [int(sure.argmax())]
                changed |= {masked[i]: int(tokens[i]) for i in taken}
            for i, token in changed.items():
                x[i] = token
            history.append(x[len(prompt) :])
            if not masked and not edits:
                break
        text = x
        if end in x[first:]:
            break
    return history
