"""Model drafter: a small autoregressive model drafts for a large one.

Both must have the same tokens; the sizes of their vocabularies may differ (Qwen2.5-Coder: 151,936 and 152,064
rows, the rest is padding). The small model reads the same prompt with its markers and keeps its cache from
call to call.
"""

from __future__ import annotations

import torch

from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.engine.runtime import Runtime
from fimserver.engine.speculation.drafts import DecodeState, Draft, grades
from fimserver.errors import LoadError
from fimserver.lengths import common_prefix

_CATCH_UP = 4  # rows of a pass over several new tokens
_STOP_BELOW = 0.3  # probability that all tokens so far are right


class ModelDrafter:
    """Drafts token by token with a small model, until the draft is probably wrong."""

    name = "model"
    inline = True
    keeps_text = True

    def __init__(self, runtime: Runtime, target: Runtime) -> None:
        check_tokens(runtime, target)
        self.cache = _check_room(runtime.cache, runtime.loaded.card.name, target)
        self.size = min(runtime.network.vocab_size, target.network.vocab_size)
        self._pad = target.network.vocab_size - self.size
        self._prompt: list[int] = []
        self._rows: list[int] = []  # tokens of the middle whose rows are in the cache

    @torch.inference_mode()
    def propose(self, state: DecodeState, size: int) -> list[Draft]:
        if size < 1 or not self._read_prompt(state):
            return []
        kept = min(common_prefix(self._rows, state.ids), len(state.ids) - 1)
        row = self._feed(state.ids[kept:], len(state.prompt) + kept)
        self._rows = list(state.ids)
        tokens = list[int]()
        distributions = list[torch.Tensor]()
        rows = list[torch.Tensor]()
        sure = 1.0
        while True:
            (token,), distribution = state.pick(row[None], len(state.ids) + len(tokens))
            tokens.append(token)
            rows.append(row)
            distributions += [] if distribution is None else [distribution]
            sure *= (
                1.0 if distribution is not None else float(row.softmax(-1)[token])
            )  # drawn tokens may not decide the length
            if len(tokens) == size or sure < _STOP_BELOW or state.deadline.spent():
                break
            row = self._feed([token], len(state.prompt) + len(self._rows))
            self._rows.append(token)
        return [
            Draft(
                self.name,
                tuple(tokens),
                grades(torch.stack(rows), tokens),
                torch.cat(distributions) if distributions else None,
            )
        ]

    def observe(self, state: DecodeState, *, ended: bool) -> None:
        """Do nothing: the next call compares ``state.ids`` with the cache."""

    def _read_prompt(self, state: DecodeState) -> bool:
        """Prefill the prompt in the small model's cache; ``False`` if the deadline passed."""
        if state.prompt is not self._prompt:
            self._rows = []
            if self.cache.prefill(state.prompt, state.deadline, want_logits=False) is None:
                return False
            self._prompt = state.prompt
        return True

    def _feed(self, ids: list[int], start: int) -> torch.Tensor:
        """Run ``ids``; return logits (V of the target,) after the last one."""
        row = torch.empty(0)
        for first in range(0, len(ids), _CATCH_UP):
            # Padding ids have no embedding in the draft model; map them to 0.
            piece = [token if token < self.size else 0 for token in ids[first : first + _CATCH_UP]]
            count = len(piece) if len(piece) == 1 else _CATCH_UP
            last = torch.tensor([len(piece) - 1], device=self.cache.network.device)
            filled = piece + [0] * (count - len(piece))
            row = self.cache.rows(filled, start + first, self.cache.causal(start + first, count), last)[0]
        return torch.nn.functional.pad(row[: self.size], (0, self._pad), value=-torch.inf)


def check_tokens(runtime: Runtime, target: Runtime) -> None:
    """Raise ``LoadError`` if the two models do not have the same tokens."""
    name = runtime.loaded.card.name
    wanted = target.loaded.card.name
    ours = target.loaded.vocabulary.ids_by_text()
    theirs = runtime.loaded.vocabulary.ids_by_text()
    size = min(runtime.network.vocab_size, target.network.vocab_size)
    different = [text for text, i in ours.items() if i < size and theirs.get(text) != i]
    if different:
        raise LoadError(
            f"{name} cannot draft for {wanted}: it has another tokenizer (no token {different[0]!r} at the"
            " same id)"
        )


def _check_room(cache: PrefixCache | None, name: str, target: Runtime) -> PrefixCache:
    card = target.loaded.card
    if cache is None:
        raise LoadError(
            f"{name} has full attention and cannot draft token by token: use `--drafter diffusion:{name}`"
        )
    if cache.capacity < target.budget.limit + card.max_new_tokens + _CATCH_UP:
        raise LoadError(
            f"{name} cannot draft for {card.name}: its card allows only shorter prompts or middles; use fewer"
            " --prompt-tokens"
        )
    return cache
