"""Reduces the ranks of a trained canvas adapter to the best approximations."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def shrink(tensors: Mapping[str, torch.Tensor], sizes: Mapping[str, torch.Size]) -> dict[str, torch.Tensor]:
    """Parameters of an adapter, cut to the ``sizes`` (by name) of another one.

    Branches: the best approximation of a lower rank. Sampler: the units with the largest weights.
    """
    small = {name: tensor for name, tensor in tensors.items() if sizes.get(name) == tensor.shape}
    for name in (name for name in tensors if name.startswith("down.") and name not in small):
        other = name.replace("down.", "up.", 1)
        small[name], small[other] = low_rank(tensors[name], tensors[other], sizes[name][0])
    if "sampler.inward" in tensors and "sampler.inward" not in small:
        inward, outward = tensors["sampler.inward"], tensors["sampler.outward"]
        strength = inward.norm(dim=1) * outward.norm(dim=0)
        kept = strength.topk(sizes["sampler.inward"][0]).indices.sort().values
        small |= {"sampler.inward": inward[kept], "sampler.outward": outward[:, kept]}
    return small


def low_rank(down: torch.Tensor, up: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrices (rank, in) and (out, rank) whose product is closest to that of ``up`` and ``down``.

    The rows of the first keep their mean length, so that a rate of learning means what it meant.
    """
    left, upper = torch.linalg.qr(up.float())
    right, lower = torch.linalg.qr(down.float().T)
    u, s, vh = torch.linalg.svd(upper @ lower.T)
    length = down.norm(dim=1).mean()
    return (right @ vh[:rank].T).T.contiguous() * length, left @ (u[:, :rank] * s[:rank]) / length
