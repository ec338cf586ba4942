"""Networks trained to draft for one target, ``Heads`` and ``BlockNetwork``, and their files.

``Heads`` reads the target's last hidden state, ``BlockNetwork`` its keys and values too. Both use the
target's embedding and head, which their files therefore leave out.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from fimserver.engine.forward.fused import native_stack
from fimserver.engine.forward.layers import LayerKV, Stack
from fimserver.engine.small_file import read_small
from fimserver.errors import LoadError


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
            inputs = [F.rms_norm(x, x.shape[-1:], eps=1e-6) for x in inputs]
        both = torch.cat(inputs, -1).expand(self.shape.heads, -1, -1)
        return hidden + torch.bmm(F.silu(torch.bmm(both, self.inward)), self.outward)


@dataclass(frozen=True)
class BlockShape:
    """Sizes of ``BlockNetwork``.

    ``borrowed``: for each of its layers, the target's layer whose keys and values it reads. ``window``: most
    slots. The other sizes are those of the target.
    """

    borrowed: tuple[int, ...] = (3, 5)
    window: int = 16
    hidden: int = 256
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    mlp: int = 768
    eps: float = 1e-6

    def config(self) -> Any:
        from transformers import Qwen3Config  # noqa: PLC0415 - slow to import

        return Qwen3Config(
            hidden_size=self.hidden,
            intermediate_size=self.mlp,
            num_hidden_layers=len(self.borrowed),
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            rms_norm_eps=self.eps,
        )


class BlockNetwork(nn.Module):
    """A masked-diffusion drafter (SpecDiff, arXiv 2408.05636) in the form of DFlash (arXiv 2602.06036).

    Slot 0 is the last known token, the ``window`` slots after it are masked or filled. They attend to each
    other in both directions, and through borrowed keys and values to the target's whole text, the suffix
    included if the layout puts it first.
    """

    KIND: ClassVar = "Block"
    Shape = BlockShape
    words: torch.Tensor | None = None  # all

    def __init__(self, shape: BlockShape) -> None:
        # Slow to import.
        from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer  # noqa: PLC0415

        super().__init__()
        self.shape = shape
        config = shape.config()
        self.layers = nn.ModuleList(Qwen3DecoderLayer(config, i) for i in range(len(shape.borrowed)))
        self.norm = nn.RMSNorm(shape.hidden, eps=shape.eps)
        self.see = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.place = nn.Parameter(torch.zeros(shape.window + 1, shape.hidden))
        self.blank = nn.Parameter(torch.zeros(shape.hidden))  # embedding of a masked slot

    def stack(self, rows: int, *, pack: bool) -> Stack:
        """Build the layers as products; in training, for every step."""
        return native_stack(self.shape.config(), list(self.layers), rows, pack=pack)

    def inputs(self, hidden: torch.Tensor, slots: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        """Return inputs (N, W + 1, d) from embeddings of ``slots`` and the hidden states (N, d) of slot 0.

        Slots for which ``masked`` (N, W + 1) is true get the embedding of a masked slot.
        """
        x = torch.where(masked[..., None], self.blank, slots)
        seen: torch.Tensor = self.see(hidden)
        return x + self.place[: x.shape[1]] + seen[:, None]

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
