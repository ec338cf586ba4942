"""Sampling of tokens from logits: keyed Gumbel noise for decoding, seeded draws for a canvas."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch

from fimserver.errors import NonFiniteError


class Words(NamedTuple):
    """Some tokens of a vocabulary, as the columns of logits: ids (n,), ascending; ``vocab_size``: of all."""

    ids: torch.Tensor
    vocab_size: int

    def columns(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the columns of tokens that are among the words."""
        return torch.searchsorted(self.ids, tokens)


def require_finite(logits: torch.Tensor) -> torch.Tensor:
    """Raise ``NonFiniteError`` on NaN or +infinity; -infinity marks forbidden tokens and is allowed."""
    # The maximum is NaN if any value is, and takes a tenth of the time of comparing each value.
    if logits.numel() and not bool(logits.amax() < float("inf")):
        raise _not_finite()
    return logits


def hashed(seed: int, what: int | str) -> int:
    """Return 64 pseudorandom bits for a seed and a purpose or position."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{what}".encode(), digest_size=8).digest(), "big")


@functools.lru_cache(maxsize=32)  # drafters and the target need the same positions
def keyed_gumbel(seed: int, position: int, size: int, device: torch.device) -> torch.Tensor:
    """Return Gumbel noise (size,), float64, that depends on ``seed`` and ``position`` alone (2408.07978)."""
    generator = torch.Generator(device).manual_seed(hashed(seed, position) >> 1)
    exponential = torch.empty(size, dtype=torch.float64, device=device).exponential_(generator=generator)
    return -exponential.log()


def choose(logits: torch.Tensor, temperature: float, seed: int, position: int) -> int:
    """Choose a token from logits (V,) as argmax(logits / T + G(seed, position)).

    So neither the cache nor drafts can change it. Raises ``NonFiniteError``.
    """
    return int(chosen(require_finite(logits), temperature, seed, position))


def chosen(logits: torch.Tensor, temperature: float, seed: int, position: int) -> torch.Tensor:
    """Return the token (1,) of ``choose``, on the device, for which the host does not wait."""
    if temperature <= 0:
        return logits.argmax(-1, keepdim=True)
    noise = keyed_gumbel(seed, position, logits.shape[-1], logits.device)
    return (logits.double() / temperature + noise).argmax(-1, keepdim=True)


def choose_rows(
    logits: torch.Tensor, temperature: float, seed: int, position: int, words: Words | None = None
) -> list[list[int]]:
    """Do what ``choose`` does for each row of logits (B, R, V), row r for ``position`` + r, on their device.

    ``words``: the tokens of logits (B, R, n) if they are not all of the vocabulary; each has the noise that
    it has among all. The host waits for the device once, when it reads the tokens. Raises ``NonFiniteError``.
    """
    scores = logits
    if temperature > 0:
        size = words.vocab_size if words else logits.shape[-1]
        rows = range(position, position + logits.shape[1])
        noise = [keyed_gumbel(seed, row, size, logits.device) for row in rows]
        scores = logits.double() / temperature + torch.stack([n[words.ids] if words else n for n in noise])
    finite = logits.amax() < float("inf")
    best = scores.argmax(-1).flatten()
    numbers = torch.cat([words.ids[best] if words else best, finite[None].long()]).tolist()
    if not numbers[-1]:
        raise _not_finite()
    return [numbers[i : i + logits.shape[1]] for i in range(0, len(numbers) - 1, logits.shape[1])]


def _not_finite() -> NonFiniteError:
    return NonFiniteError(
        "the model produced NaN or infinity: its weights are damaged, or do not suit the number format;"
        " download it again or use another --quantize"
    )


class SlotProposals(NamedTuple):
    """One proposed token for each of n masked slots.

    ``margin``: probability of the likeliest token less that of the second. ``entropy`` in nats. All are of
    the distribution after temperature and top-p.
    """

    tokens: Sequence[int]
    probability: Sequence[float]
    margin: Sequence[float]
    entropy: Sequence[float]

    def rows(self, numbers: Sequence[int]) -> SlotProposals:
        """Return the proposals of some slots."""
        return SlotProposals(*([values[i] for i in numbers] for values in self))  # type: ignore[arg-type]


def draw(
    logits: torch.Tensor,
    temperature: float = 0.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Draw a token for each row of logits (n, V), like Dream's ``sample_tokens``; ``read`` fetches them.

    Returns (5, n) numbers on the device of the logits: the fields of ``SlotProposals``, and whether a row's
    logits are finite. The host does not wait for the device.
    """
    finite = (logits < float("inf")).all(-1)
    logits = torch.where(finite[:, None], logits, 0.0).float()
    if temperature > 0:
        logits = logits / temperature
    if top_p < 1:
        logits = keep_top_p(logits, top_p)
    probabilities = logits.softmax(-1)
    if temperature > 0:
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
        # The method of torch.multinomial, without its check of the input, for which the host would wait.
        tokens = (probabilities / torch.empty_like(probabilities).exponential_(generator=generator)).argmax(
            -1
        )
        probability = probabilities.gather(-1, tokens[:, None]).squeeze(-1)
    else:
        probability, tokens = probabilities.max(-1)
    first, second = probabilities.topk(2, -1).values.unbind(-1)
    entropy = -(probabilities * (probabilities + 1e-10).log()).sum(-1)
    return torch.stack([n.double() for n in (tokens, probability, first - second, entropy, finite)])


def read(*drawn: torch.Tensor) -> list[SlotProposals]:
    """Read results of ``draw`` from the device, all of them at once. Raises ``NonFiniteError``."""
    tokens, probability, margin, entropy, finite = torch.cat(drawn, -1).tolist()
    if not all(finite):
        raise _not_finite()
    every = SlotProposals([int(token) for token in tokens], probability, margin, entropy)
    ends = list(itertools.accumulate(one.shape[1] for one in drawn))
    return [every.rows(range(end - one.shape[1], end)) for one, end in zip(drawn, ends, strict=True)]


def keep_top_p(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Set logits outside the nucleus to the smallest number; the token that crosses ``top_p`` stays."""
    ordered, index = logits.sort(descending=True)
    over = ordered.softmax(-1).cumsum(-1) > top_p
    over[..., 1:] = over[..., :-1].clone()
    over[..., 0] = False
    return logits.masked_fill(torch.zeros_like(over).scatter(-1, index, over), torch.finfo(logits.dtype).min)
