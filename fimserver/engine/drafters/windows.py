"""Windows of the diffusion drafter that are canvases: the target's own, or another model's."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fimserver.cards import Card
from fimserver.engine.denoising.canvas import FullCanvas
from fimserver.engine.forward.adapter import CanvasNetwork
from fimserver.engine.forward.network import Network
from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.engine.prompts.prompt import PromptTokens, canvas_context
from fimserver.engine.prompts.vocabulary import Vocabulary
from fimserver.engine.speculation.drafts import DecodeState


class SelfWindow:
    """Window of the target's own canvas on the shared cache, for a network trained for both.

    The row of the last id is causal, so its logits for the first slot are the target's own.
    """

    words = None

    def __init__(
        self, cache: PrefixCache, mask_token: int, longest: int, network: Network | None = None
    ) -> None:
        """``network``: runs the window on the cache's keys and values; ``None``: the cache's network."""
        self.cache = cache
        self.mask_token = mask_token
        self.longest = longest
        self.network = network or cache.network

    def predict(self, state: DecodeState, slots: Sequence[int | None]) -> torch.Tensor:
        start = len(state.prompt) + len(state.ids) - 1
        rows = len(slots) + 1
        ids = [state.ids[-1], *(self.mask_token if slot is None else slot for slot in slots)]
        mask = self.cache.causal(start, rows).clone()
        mask[1:, : start + rows] = True
        every = torch.arange(rows, device=self.network.device)
        logits = self.cache.rows(ids, start, mask, every, self.network)
        return torch.cat([logits[:1], logits[2:]])


class AdapterWindow:
    """Window of the target's own canvas by its adapter: the last token as text, then a block of masks.

    The row before a slot predicts it, so the logits of the first slot are the target's own.
    """

    words = None

    def __init__(self, cache: PrefixCache, network: CanvasNetwork) -> None:
        self.cache = cache
        self.network = network
        self.longest = max(network.adapter.blocks) + 1

    def predict(self, state: DecodeState, slots: Sequence[int | None]) -> torch.Tensor:
        start = len(state.prompt) + len(state.ids) - 1
        mask_token = self.network.mask_token
        known = next((i for i, slot in enumerate(slots) if slot is None), len(slots))
        needed = max(1, len(slots) - known - 1)
        block = min(size for size in self.network.adapter.blocks if size >= needed)
        canvas = [mask_token if slot is None else slot for slot in slots[known : known + block]]
        ids = [state.ids[-1], *(slot for slot in slots[:known] if slot is not None), *canvas]
        ids += [mask_token] * (known + 1 + block - len(ids))
        mask = self.cache.causal(start, len(ids)).clone()
        mask[known + 1 :, : start + len(ids)] = True
        logits_of = torch.arange(len(slots), device=self.network.device)
        logits = self.cache.rows(ids, start, mask, logits_of, self.network)
        informed = list(logits)
        for place in range(known + 1, len(slots)):
            before = int(informed[place - 1].argmax())
            informed[place] = self.network.after(self.network.hidden[0, place], logits[place], before)
        return torch.stack(informed)


class CanvasWindow:
    """Window of a diffusion model with the same tokens, between prefix and middle so far, and suffix."""

    words = None

    def __init__(self, network: Network, card: Card, vocabulary: Vocabulary, size: int) -> None:
        assert card.canvas is not None  # the registry has checked it
        self.network = network
        self.card = card
        self.vocabulary = vocabulary
        self.size = min(size, network.vocab_size)
        self._wanted = size
        self.mask_token = vocabulary.special(card.canvas.mask)
        self.shift = card.canvas.shift
        self.longest = card.canvas.max_tokens

    def predict(self, state: DecodeState, slots: Sequence[int | None]) -> torch.Tensor:
        ids = (
            token if token < self.size else 0 for token in state.ids
        )  # padding ids of the target may have no embedding in this model
        context = PromptTokens((*state.prefix, *ids), tuple(state.suffix))
        left, right = canvas_context(context, self.card, self.vocabulary)
        canvas = FullCanvas(self.network, left, right, shift=self.shift)
        logits = canvas.predict([self.mask_token if slot is None else slot for slot in slots])
        return torch.nn.functional.pad(
            logits[:, : self.size], (0, self._wanted - self.size), value=-torch.inf
        )
