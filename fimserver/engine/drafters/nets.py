"""Networks trained to draft for one target, ``Heads`` and ``BlockNetwork``, and their files.

``Heads`` reads the target's last hidden state, ``BlockNetwork`` its keys and values too. Both use the
target's embedding and head, which their files therefore leave out.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from fimserver.engine.forward.layers import GatedMlp, Layer, LayerKV, Linear, ModelShape, Stack
from fimserver.engine.forward.linear import linear
from fimserver.engine.small_file import read_small
from fimserver.errors import LoadError

Merge = Callable[[list[nn.Linear]], Linear]  # matrices over the same input to their product


@dataclass(frozen=True)
class HeadsShape:
    """Sizes of ``Heads``.

    ``hidden``: width of the target. ``width``: inner width of each head; 0: the same. ``words``: number of
    tokens that can be drafted; 0: all. ``normed``: inputs are divided by their root mean square, for coders
    whose embeddings are much smaller than their hidden states.
    """

    hidden: int = 256
    heads: int = 6
    width: int = 0
    words: int = 0
    normed: bool = False


class Heads(nn.Module):
    """Multi-token prediction heads (Gloeckle et al., arXiv 2404.19737; Medusa, arXiv 2401.10774).

    Head k predicts the token k places after the last known one, from the hidden state that gave that token
    and (as in Hydra, arXiv 2402.05109) the token itself.
    """

    KIND: ClassVar = "Heads"  # in the metadata of its files
    Shape = HeadsShape
    words: torch.Tensor | None  # ids, ascending, of the tokens that are drafted; ``None``: all

    def __init__(self, shape: HeadsShape) -> None:
        super().__init__()
        self.shape = shape
        d = shape.hidden
        k = shape.heads
        width = shape.width or d
        self.register_buffer("words", torch.zeros(shape.words, dtype=torch.int32) if shape.words else None)
        self.inward = nn.Parameter(torch.randn(k, 2 * d, width) * (2 * d) ** -0.5)
        self.outward = nn.Parameter(torch.zeros(k, width, d))

    def forward(self, hidden: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """From hidden states (N, d) and embeddings (N, d) of their tokens to inputs of the head (K, N, d)."""
        inputs = [hidden, token]
        if self.shape.normed:
            inputs = [normed(x) for x in inputs]
        both = torch.cat(inputs, -1).expand(self.shape.heads, -1, -1)
        return hidden + torch.bmm(F.silu(torch.bmm(both, self.inward)), self.outward)


def normed(x: torch.Tensor) -> torch.Tensor:
    """Divide (…, d) by its root mean square; embeddings of a coder are a hundredth of its hidden states."""
    return F.rms_norm(x, x.shape[-1:], eps=1e-6)


@dataclass(frozen=True)
class BlockShape:
    """Sizes of ``BlockNetwork``.

    ``borrowed``: for each of its layers, the target's layer whose keys and values it reads. ``window``: most
    slots. ``words``: number of tokens that can be drafted; 0: all. ``normed``: hidden states and embeddings
    are divided by their root mean square. ``sees_token``: every slot sees the embedding of the last known
    token beside the hidden state that gave it. ``sampler``: width of the network that adds what the token
    before a slot says about it; 0: none. The other sizes are those of the target.
    """

    borrowed: tuple[int, ...] = (3, 5)
    window: int = 16
    hidden: int = 256
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    mlp: int = 768
    eps: float = 1e-6
    words: int = 0
    normed: bool = False
    sees_token: bool = False
    sampler: int = 0


class _Attention(nn.Module):
    """The matrices and norms of grouped-query attention, named as transformers does."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        queries = shape.heads * shape.head_dim
        keys = shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden, queries, bias=False)
        self.k_proj = nn.Linear(shape.hidden, keys, bias=False)
        self.v_proj = nn.Linear(shape.hidden, keys, bias=False)
        self.o_proj = nn.Linear(queries, shape.hidden, bias=False)
        self.q_norm = nn.RMSNorm(shape.head_dim, eps=shape.eps)
        self.k_norm = nn.RMSNorm(shape.head_dim, eps=shape.eps)


class _Mlp(nn.Module):
    """The matrices of a gated MLP, named as transformers does."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.mlp, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.mlp, bias=False)
        self.down_proj = nn.Linear(shape.mlp, shape.hidden, bias=False)


class _Layer(nn.Module):
    """The weights of one decoder layer of Qwen3, named as transformers does, whose import takes seconds."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.self_attn = _Attention(shape)
        self.mlp = _Mlp(shape)
        self.input_layernorm = nn.RMSNorm(shape.hidden, eps=shape.eps)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, eps=shape.eps)

    def products(self, product: Merge) -> Layer:
        """Return the layer with each group of matrices over the same input merged by ``product``."""
        attention = self.self_attn
        mlp = self.mlp
        return Layer(
            self.input_layernorm.weight,
            product([attention.q_proj, attention.k_proj, attention.v_proj]),
            attention.q_norm.weight,
            attention.k_norm.weight,
            product([attention.o_proj]),
            self.post_attention_layernorm.weight,
            GatedMlp(product([mlp.gate_proj, mlp.up_proj]), product([mlp.down_proj])),
        )


class BlockNetwork(nn.Module):
    """A masked-diffusion drafter (SpecDiff, arXiv 2408.05636) in the form of DFlash (arXiv 2602.06036).

    Slot 0 is the last known token, the ``window`` slots after it are masked or filled. They attend to each
    other in both directions, and through borrowed keys and values to the target's whole text, the suffix
    included if the layout puts it first. Slots are predicted independently of each other, unless a sampler
    head (arXiv 2507.11851) corrects each by the token before it.
    """

    KIND: ClassVar = "Block"
    Shape = BlockShape
    words: torch.Tensor | None  # ids, ascending, of the tokens that are drafted; ``None``: all

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.shape = shape
        d = shape.hidden
        self.register_buffer("words", torch.zeros(shape.words, dtype=torch.int32) if shape.words else None)
        self.layers = nn.ModuleList(_Layer(shape) for _ in shape.borrowed)
        self.norm = nn.RMSNorm(d, eps=shape.eps)
        self.see = nn.Linear(2 * d if shape.sees_token else d, d, bias=False)
        self.place = nn.Parameter(torch.zeros(shape.window + 1, d))
        self.blank = nn.Parameter(torch.zeros(d))  # embedding of a masked slot
        if shape.sampler:
            self.inward = nn.Parameter(torch.randn(shape.sampler, 2 * d) * (2 * d) ** -0.5)
            self.outward = nn.Parameter(torch.zeros(d, shape.sampler))

    def stack(self, rows: int, *, pack: bool) -> Stack:
        """Build the layers as products; in training, for every step."""
        return self.stack_of(lambda modules: linear(modules, rows, pack=pack))

    def stack_of(self, product: Merge) -> Stack:
        """Build the layers with products that ``product`` makes of matrices over the same input."""
        shape = self.shape
        sizes = ModelShape(shape.heads, shape.kv_heads, shape.head_dim, shape.eps, shape.head_dim**-0.5)
        return Stack([layer.products(product) for layer in self.layers], sizes)  # type: ignore[operator]

    def inputs(self, hidden: torch.Tensor, slots: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        """Return inputs (N, W + 1, d) from embeddings of ``slots`` and the hidden states (N, d) of slot 0.

        Slots for which ``masked`` (N, W + 1) is true get the embedding of a masked slot.
        """
        if self.shape.normed:
            hidden, slots = normed(hidden), normed(slots)
        x = torch.where(masked[..., None], self.blank, slots)
        both = torch.cat([hidden, slots[:, 0]], -1) if self.shape.sees_token else hidden
        seen: torch.Tensor = self.see(both)
        return x + self.place[: x.shape[1]] + seen[:, None]

    def after(self, x: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Inputs of the target's head (…, d), given embeddings (…, d) of the tokens before the slots.

        The same as ``x`` without a sampler.
        """
        if not self.shape.sampler:
            return x
        both = torch.cat([normed(x), normed(before)], -1)
        return x + F.linear(F.silu(F.linear(both, self.inward)), self.outward)

    def run(
        self,
        stack: Stack,
        x: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor],
        bias: torch.Tensor,
        kv: LayerKV,
    ) -> torch.Tensor:
        """Run inputs (N * (W + 1), d) to inputs of the target's head, same shape; row i predicts slot i."""
        out: torch.Tensor = self.norm(stack.run(x, rope, bias, kv))
        return out


Net = TypeVar("Net", Heads, BlockNetwork)


def save_net(net: Heads | BlockNetwork, path: Path, target: str) -> None:
    """Write weights in bf16 and ``words``; ``target``: SHA-256 of the target's weights."""
    metadata = {"kind": net.KIND, "shape": json.dumps(asdict(net.shape)), "target": target}
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().to(torch.bfloat16).contiguous() for name, p in net.named_parameters()}
    save_file(tensors | dict(net.named_buffers()), path, metadata)


def load_net(kind: type[Net], path: Path, target: str) -> Net:
    """Read a drafter's file for the weights whose SHA-256 is ``target``.

    Raises ``LoadError`` if it is missing, damaged, of another kind, or for another target.
    """
    try:
        metadata, tensors = read_small(path)
        shape = {
            name: tuple(v) if isinstance(v, list) else v for name, v in json.loads(metadata["shape"]).items()
        }
        net = kind(kind.Shape(**shape))  # type: ignore[arg-type]
        net.load_state_dict(tensors)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise LoadError(
            f"drafter file {path.name} cannot be read ({type(error).__name__}): reinstall, or train it again"
        ) from None
    if metadata.get("kind") != kind.KIND:
        raise LoadError(f"drafter file {path.name} holds {metadata.get('kind')!r}, not {kind.KIND!r}")
    if metadata.get("target") != target:
        raise LoadError(
            f"drafter file {path.name} was trained for other weights of this model: `make drafters` trains it"
            " again"
        )
    if not all(bool(torch.isfinite(t).all()) for t in tensors.values()):
        raise LoadError(f"drafter file {path.name} holds NaN or infinity: reinstall, or train it again")
    return net.eval().requires_grad_(False)
