"""Choosing tokens from logits: keyed Gumbel noise for decoding, seeded draws for a canvas."""

from __future__ import annotations

import functools
import hashlib
from typing import NamedTuple

import torch

from fimserver.errors import NonFiniteError


def require_finite(logits: torch.Tensor) -> torch.Tensor:
    """Raise ``NonFiniteError`` on NaN or +infinity; -infinity means forbidden and is fine."""
    if not bool((logits < float("inf")).all()):
        raise _not_finite()
    return logits


def hashed(seed: int, what: int | str) -> int:
    """64 pseudorandom bits for a seed and a purpose."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{what}".encode(), digest_size=8).digest(), "big")


@functools.lru_cache(maxsize=32)  # drafters and the target look at the same positions
def keyed_gumbel(seed: int, position: int, size: int, device: torch.device) -> torch.Tensor:
    """Gumbel noise that depends on ``seed`` and ``position`` alone, (size,), float64 (arXiv 2408.07978)."""
    generator = torch.Generator(device).manual_seed(hashed(seed, position) >> 1)
    exponential = torch.empty(size, dtype=torch.float64, device=device).exponential_(generator=generator)
    return -exponential.log()


def choose(logits: torch.Tensor, temperature: float, seed: int, position: int) -> int:
    """One token from (V,) logits.

    Argmax(logits / T + G(seed, position)), so that no cache or draft can change it.
    """
    require_finite(logits)
    if temperature <= 0:
        return int(logits.argmax())
    noise = keyed_gumbel(seed, position, logits.shape[-1], logits.device)
    return int((logits.double() / temperature + noise).argmax())


def choose_rows(logits: torch.Tensor, temperature: float, seed: int, position: int) -> list[list[int]]:
    """``choose`` for each row of (B, R, V) logits, row r for ``position`` + r, on their device.

    The host waits for the device once, when it reads the tokens. Raises ``NonFiniteError``.
    """
    scores = logits
    if temperature > 0:
        rows = range(position, position + logits.shape[1])
        noise = [keyed_gumbel(seed, row, logits.shape[-1], logits.device) for row in rows]
        scores = logits.double() / temperature + torch.stack(noise)
    finite = (logits < float("inf")).all()
    numbers = torch.cat([scores.argmax(-1).flatten(), finite[None].long()]).tolist()
    if not numbers[-1]:
        raise _not_finite()
    return [numbers[i : i + logits.shape[1]] for i in range(0, len(numbers) - 1, logits.shape[1])]


def _not_finite() -> NonFiniteError:
    return NonFiniteError("the model produced NaN or infinity; its weights or its number format are broken")


class SlotProposals(NamedTuple):
    """One proposed token for each masked slot, all (n,).

    ``entropy`` and ``margin`` are of the filtered distribution.
    """

    tokens: torch.Tensor
    probability: torch.Tensor
    margin: torch.Tensor
    entropy: torch.Tensor


def draw(
    logits: torch.Tensor,
    temperature: float = 0.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> SlotProposals:
    """Propose a token for each row of (n, V) logits, rows drawn in order (Dream's ``sample_tokens``)."""
    logits = require_finite(logits).float()
    if temperature > 0:
        logits = logits / temperature
    if top_p < 1:
        logits = keep_top_p(logits, top_p)
    probabilities = logits.softmax(-1)
    if temperature > 0:
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
        tokens = torch.multinomial(probabilities, 1, replacement=True, generator=generator).squeeze(-1)
        probability = probabilities.gather(-1, tokens[:, None]).squeeze(-1)
    else:
        probability, tokens = probabilities.max(-1)
    first, second = probabilities.topk(2, -1).values.unbind(-1)
    entropy = -(probabilities * (probabilities + 1e-10).log()).sum(-1)
    return SlotProposals(tokens, probability, first - second, entropy)


def keep_top_p(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Logits outside the nucleus become the smallest number; the token that crosses ``top_p`` stays."""
    ordered, index = logits.sort(descending=True)
    over = ordered.softmax(-1).cumsum(-1) > top_p
    over[..., 1:] = over[..., :-1].clone()
    over[..., 0] = False
    return logits.masked_fill(torch.zeros_like(over).scatter(-1, index, over), torch.finfo(logits.dtype).min)
