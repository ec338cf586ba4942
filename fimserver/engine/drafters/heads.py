"""Heads drafter: multi-token prediction heads draft all tokens at once from one hidden state."""

from __future__ import annotations

import torch

from fimserver.engine.drafters.cut_head import cut_head, words_of
from fimserver.engine.drafters.nets import Heads
from fimserver.engine.forward.network import Network
from fimserver.engine.speculation.drafts import DecodeState, Draft, draft_from


class HeadsDrafter:
    """Drafts with multi-token prediction heads on the target's last hidden state (``nets.Heads``)."""

    name = "heads"
    inline = True
    keeps_text = False

    def __init__(self, net: Heads, network: Network) -> None:
        self.net = net.to(network.device, network.dtype)
        self.network = network
        self.words = words_of(network, net.words)
        self.head = cut_head(network, self.words, net.shape.hidden)

    @torch.inference_mode()
    def propose(self, state: DecodeState, size: int) -> list[Draft]:
        if state.hidden is None or size < 1:
            return []
        last = torch.tensor(state.ids[-1:], device=self.network.device)
        inputs = self.net(state.hidden[None], self.network.embed(last))[:size, 0]  # (K, d)
        return [draft_from(self.name, self.head(inputs), state, words=self.words)]

    def observe(self, state: DecodeState, *, ended: bool) -> None:
        """Do nothing: the hidden state comes with ``state``."""
