"""Low-rank adapter for the canvas rows of a causal network (gated LoRA, arXiv 2507.11851), and its file.

Mask tokens open the gate: rows before the first mask of a branch are text and use the frozen weights alone;
masks, and known tokens to the right of a mask, also use the low-rank branch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.nn import functional as F

from fimserver.engine.device import to_device
from fimserver.engine.forward.fused import FusedModel
from fimserver.engine.forward.graphs import Graphs
from fimserver.engine.forward.kv import KVBuffer
from fimserver.engine.forward.layers import LayerKV, Linear, Part, filled
from fimserver.engine.forward.static_pass import StaticPasses
from fimserver.engine.small_file import read_small
from fimserver.errors import LoadError

KIND = "canvas adapter"
SAMPLER = ("sampler.inward", "sampler.outward")
CANDIDATES = 64  # tokens that the sampler scores again for each slot


@dataclass(frozen=True)
class CanvasAdapter:
    """The contents of an adapter file.

    ``base``: SHA-256 of the weights that it was trained on. ``blocks``: canvas sizes in tokens, and
    ``mask_ratios``: lowest and highest share of masks in a canvas, both as seen in training. ``mask`` (d,):
    embedding of the mask token. ``branches``: matrices down (rank, in) and up (out, rank) by "layer.product".
    ``sampler``: matrices (width, 2 d) and (d, width) of the sampler head, which conditions a slot on the
    token before it (arXiv 2507.11851); ``None``: the adapter has none.
    """

    base: str
    blocks: tuple[int, ...]
    mask_ratios: tuple[float, float]
    mask: torch.Tensor
    branches: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    sampler: tuple[torch.Tensor, torch.Tensor] | None = None

    def check_block(self, tokens: int) -> None:
        """Raise ``LoadError`` for a canvas size or a share of masks that the adapter was not trained on."""
        low, high = self.mask_ratios
        if tokens not in self.blocks:
            known = ", ".join(map(str, self.blocks))
            raise LoadError(
                f"the canvas adapter was trained on canvases of {known} tokens, not of {tokens}: change"
                " block_tokens in the model's card"
            )
        if low > 1 / tokens or high < 1:
            raise LoadError(
                f"the canvas adapter was trained on shares of masks from {low:g} to {high:g}, but a canvas"
                f" needs 1/{tokens} to 1: train it again on all of them"
            )


def save_adapter(adapter: CanvasAdapter, path: Path) -> None:
    """Write an adapter to ``path``, in bf16."""
    tensors = {"mask": adapter.mask}
    if adapter.sampler:
        tensors |= dict(zip(SAMPLER, adapter.sampler, strict=True))
    for name, (down, up) in adapter.branches.items():
        tensors |= {f"{name}.down": down, f"{name}.up": up}
    about = {"blocks": json.dumps(adapter.blocks), "mask_ratios": json.dumps(adapter.mask_ratios)}
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {name: t.detach().to(torch.bfloat16).contiguous() for name, t in tensors.items()}
    save_file(stored, path, {"kind": KIND, "base": adapter.base} | about)


def load_adapter(path: Path, base: str) -> CanvasAdapter:
    """Read an adapter file for the weights whose SHA-256 is ``base``.

    Raises ``LoadError`` if the file is missing or damaged, or the adapter was trained on other weights.
    """
    try:
        about, tensors = read_small(path)
        names = [name.removesuffix(".down") for name in tensors if name.endswith(".down")]
        branches = {name: (tensors[f"{name}.down"], tensors[f"{name}.up"]) for name in names}
        low, high = json.loads(about["mask_ratios"])
        adapter = CanvasAdapter(
            about["base"],
            tuple(json.loads(about["blocks"])),
            (low, high),
            tensors["mask"],
            branches,
            (tensors[SAMPLER[0]], tensors[SAMPLER[1]]) if SAMPLER[0] in tensors else None,
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise LoadError(
            f"canvas adapter {path} cannot be read ({type(error).__name__}): reinstall fimserver"
        ) from None
    if about.get("kind") != KIND:
        raise LoadError(f"{path.name} holds {about.get('kind')!r}, not {KIND!r}")
    if adapter.base != base:
        raise LoadError(
            f"canvas adapter {path.name} was trained on weights {adapter.base[:12]}…, the model has"
            f" {base[:12]}…: install the weights that the adapter was trained on"
        )
    if not all(bool(torch.isfinite(t).all()) for t in tensors.values()):
        raise LoadError(f"canvas adapter {path.name} holds NaN or infinity: reinstall fimserver")
    return adapter


class Gate:
    """The canvas rows of the pass in progress: from the first mask of each branch on.

    On a CPU they are ``slices``, one for each branch that has canvas rows. On a GPU ``rows`` (N, 1) is true
    for them: slices would make the host wait for the device. ``wide`` has a row for each row of a product,
    which are ``least`` or more.
    """

    def __init__(self, mask_token: int, *, on_device: bool) -> None:
        self.mask_token = mask_token
        self.on_device = on_device
        self.least = 0
        self.slices: list[slice] = []
        self.rows: torch.Tensor | None = None
        self.wide: torch.Tensor | None = None

    def set(self, parts: Sequence[tuple[torch.Tensor, bool]]) -> None:
        """Find the canvas rows of a pass, given the ids (B, M) of each part and whether it is a canvas."""
        masked = [(ids == self.mask_token).cummax(1).values & is_canvas for ids, is_canvas in parts]
        self.slices = []
        self.rows = torch.cat([rows.flatten() for rows in masked])[:, None] if self.on_device else None
        self.wide = None if self.rows is None else filled(self.rows, self.least)
        end = 0
        for rows in () if self.on_device else masked:
            for count in rows.sum(1).tolist():
                end += rows.shape[1]
                self.slices += [slice(end - count, end)] if count else []


class GatedLinear:
    """A frozen linear layer that adds a low-rank branch to its canvas rows."""

    def __init__(self, product: Linear, down: torch.Tensor, up: torch.Tensor, gate: Gate) -> None:
        self.product = product
        self.down = down
        self.up = up
        self.gate = gate

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out = self.product(x)
        if self.gate.wide is not None:
            return torch.where(self.gate.wide, torch.addmm(out, x @ self.down.T, self.up.T), out)
        # One product for each canvas, so that its bits do not depend on other canvases. In place, as
        # gathering the rows would take three times as long, and this runs for every linear layer of every
        # pass.
        for rows in self.gate.slices:
            out[rows].addmm_(x[rows] @ self.down.T, self.up.T)
        return out


class CanvasNetwork:
    """A ``Network`` with an adapter on its canvas rows, on the weights and KV buffer of a frozen one."""

    def __init__(self, frozen: FusedModel, adapter: CanvasAdapter, mask_token: int) -> None:
        """Raise ``LoadError`` if the adapter has other layers or sizes than the network."""
        self.frozen = frozen
        self.adapter = adapter
        self.mask_token = mask_token
        self.gate = Gate(mask_token, on_device=frozen.device.type == "cuda")
        self.vocab_size = frozen.vocab_size
        self.device = frozen.device
        self.dtype = frozen.dtype
        self.head = frozen.head
        self.hidden = torch.empty(0)
        self._mask = adapter.mask.to(self.device, self.dtype)
        self._sampler = tuple(t.to(self.device, self.dtype) for t in adapter.sampler or ())
        self.embed: Callable[[torch.Tensor], torch.Tensor] = self._embed
        self._check()
        self._network = frozen.wrapped(self._wrap, self._embed_pass)

    def use_graphs(self, graphs: Graphs) -> None:
        """Run cached passes through ``graphs``, over static buffers, from now on.

        A pass then finds its canvas rows itself, so that a replay finds those of its own ids.
        """
        like = self.frozen.final_norm
        self._network.static = StaticPasses(self._run_gated, self.vocab_size, like, graphs)
        self.gate.least = self.frozen.static.product_rows if self.frozen.static else 0
        self._network.static.product_rows = self.gate.least

    @property
    def static(self) -> StaticPasses | None:
        return self._network.static

    def _run_gated(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor,
        kv: LayerKV,
        logits_of: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.gate.set([(ids, True)])
        return self._network.run_at(ids, positions, mask, kv, logits_of)

    def _open_gate(self, ids: torch.Tensor) -> None:
        if self._network.static is None:
            self.gate.set([(ids, True)])

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings (…, d) of ids (…), with the adapter's own for mask tokens."""
        return torch.where((ids == self.mask_token)[..., None], self._mask, self.frozen.embed(ids))

    def _embed_pass(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings (N, d) of a pass; outside a canvas the mask token is an ordinary token."""
        rows = self.frozen.embed(ids)
        if self.gate.rows is not None:
            return torch.where(self.gate.rows & (ids == self.mask_token)[:, None], self._mask, rows)
        for canvas in self.gate.slices:
            rows[canvas] = self._embed(ids[canvas])
        return rows

    def forward_parts(
        self, parts: Sequence[Part], are_canvas: Sequence[bool]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Run ``FusedModel.forward_parts`` on canvases and texts, with the adapter on canvases alone."""
        self.gate.set(list(zip((part.ids for part in parts), are_canvas, strict=True)))
        return self._network.forward_parts(parts)

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, kv: KVBuffer, logits_of: torch.Tensor
    ) -> torch.Tensor:
        self._open_gate(ids)
        logits = self._network.forward(ids, mask, kv, logits_of)
        self.hidden = self._network.hidden
        return logits

    def forward_at(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor,
        kv: KVBuffer,
        logits_of: torch.Tensor,
    ) -> torch.Tensor:
        """Run ``forward`` on ids (1, M) whose text ``positions`` (M,) differ from their KV rows."""
        self._open_gate(ids)
        logits = self._network.forward_at(ids, positions, mask, kv, logits_of)
        self.hidden = self._network.hidden
        return logits

    def after(self, hidden: torch.Tensor, logits: torch.Tensor, token: int | torch.Tensor) -> torch.Tensor:
        """Return logits (V,) of a canvas row that also depend on the token before the slot it predicts.

        ``hidden`` (d,) and ``logits`` (V,) are those of the row, ``token`` an id or a tensor (1,). The
        sampler scores the ``CANDIDATES`` likeliest tokens again and rules the others out. An adapter without
        a sampler returns ``logits``.
        """
        if not self._sampler:
            return logits
        known = to_device([token], self.device) if isinstance(token, int) else token
        before = self.frozen.embed(known)[0]
        changed = self._informed(hidden, before)
        found = logits.topk(min(CANDIDATES, len(logits))).indices
        # The change goes through the embedding: coders with a sampler share it with the head.
        scores = logits[found] + self.frozen.embed(found) @ (changed - hidden)
        return torch.full_like(logits, -torch.inf).index_put((found,), scores.to(logits.dtype))

    def _informed(self, hidden: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        size = before.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-6)
        inward, outward = self._sampler
        return hidden + F.silu(torch.cat([hidden, before / size], -1) @ inward.T) @ outward.T

    def forward_bidirectional(self, ids: torch.Tensor, logits_of: torch.Tensor) -> torch.Tensor:
        return self.frozen.forward_bidirectional(ids, logits_of)

    def _wrap(self, layer: int, name: str, product: Linear) -> Linear:
        branch = self.adapter.branches.get(f"{layer}.{name}")
        if branch is None:
            return product
        down, up = (t.to(self.device, self.dtype) for t in branch)
        return GatedLinear(product, down, up, self.gate)

    def _check(self) -> None:
        """Refuse an adapter of another network; a wrong size of a branch fails in the first pass."""
        layers = {int(name.partition(".")[0]) for name in self.adapter.branches}
        if (
            not layers
            or max(layers) >= len(self.frozen.stack.layers)
            or self._mask.shape != self.frozen.final_norm.shape
        ):
            raise LoadError(
                "the canvas adapter has other layers or sizes than this model: get the file trained for it"
            )
