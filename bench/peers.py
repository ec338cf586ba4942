"""transformers as arms: ``generate``, with a draft model, with prompt lookup, on the same spans.

Every arm gets what it is best with: the dynamic cache (assisted generation refuses the static one), one
prompt without padding, inference mode, and no work but ids to ids in its time. The model is read a second
time from the same file, so that no hook of ours runs in it. transformers' assistant starts before the first
token: its drafts count into the time to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from bench.arms import Answer, Fleet, Skipped, Spec
from bench.spans import Span
from fimserver.cards import Card, model_folder
from fimserver.engine.load import load


class _Ear(BaseStreamer):
    """Streamer of ``generate`` that records ids as they come; the first ones are the prompt's."""

    def __init__(self) -> None:
        self.heard: list[tuple[float, list[int]]] = []

    def put(self, value: torch.Tensor) -> None:
        self.heard.append((time.perf_counter(), value.flatten().tolist()))

    def end(self) -> None:
        """Do nothing at the end of the call."""


class Transformers:
    """One way to call ``generate``. ``prepare``: sets options of a configuration."""

    ours = False

    def __init__(
        self, name: str, fleet: Fleet, model: Any, options: dict[str, Any], prepare: Callable[[], None]
    ) -> None:
        self.name, self.model, self.options, self.prepare = name, model, options, prepare
        self.stops, self.pad = sorted(fleet.stops), int(model.config.pad_token_id or 0)
        self._rows: list[int] = []  # of each forward pass

    def answer(self, span: Span, prompt: Sequence[int]) -> Answer:
        self.prepare()
        self._rows.clear()
        ear = _Ear()
        watch = self.model.register_forward_pre_hook(self._see, with_kwargs=True)
        started = time.perf_counter()
        with torch.inference_mode():
            ids = torch.tensor([prompt])
            self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=span.request.sampling.max_tokens,
                eos_token_id=self.stops,
                pad_token_id=self.pad,
                streamer=ear,
                **self.options,
            )
        total_ms = 1000 * (time.perf_counter() - started)
        watch.remove()
        said = [(1000 * (at - started), new) for at, new in ear.heard[1:]]
        passes = len(self._rows) - 1
        return Answer(said, total_ms, passes, passes, max(0, sum(self._rows) - len(prompt) - passes))

    def about(self) -> dict[str, Any]:
        return {"options": {key: value for key, value in self.options.items() if key != "assistant_model"}}

    def close(self) -> None:
        """Do nothing: there is nothing to release."""

    def _see(self, _model: Any, _inputs: Any, named: dict[str, Any]) -> None:
        self._rows.append(int(named["input_ids"].shape[1]))


class Peers:
    """transformers' models, each read once and when first needed."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self._models: dict[str, Any] = {}

    def arm(self, spec: Spec) -> Transformers:
        """``transformers``, ``transformers+model/K5`` (K drafts), ``transformers+lookup/K16N5`` (n-grams)."""
        model = self._model(self.fleet.card)
        if spec.name == "transformers":
            return Transformers(spec.text, self.fleet, model, {}, lambda: None)
        if spec.name == "transformers+lookup":
            options = {"prompt_lookup_num_tokens": spec.knobs.get("K", 10)}
            options |= {"max_matching_ngram_size": spec.knobs["N"]} if "N" in spec.knobs else {}
            return Transformers(spec.text, self.fleet, model, options, lambda: None)
        if spec.name == "transformers+model":
            assistant = self._model(self.fleet.draft_card())
            return Transformers(
                spec.text,
                self.fleet,
                model,
                {"assistant_model": assistant},
                lambda: _set(assistant, spec.knobs.get("K")),
            )
        raise Skipped(
            f"{spec.text}: no such way to call transformers; there are transformers, +model and +lookup"
        )

    def _model(self, card: Card) -> Any:
        if card.name not in self._models:
            folder = model_folder(card, self.fleet.settings.models_dir)
            self._models[card.name] = load(card, folder, torch.device("cpu")).model
        return self._models[card.name]


def _set(assistant: Any, drafted: int | None) -> None:
    """Transformers reads these from the assistant at each call, and arms share it.

    ``None``: as transformers has it.
    """
    assistant.generation_config.num_assistant_tokens = drafted
    assistant.generation_config.num_assistant_tokens_schedule = None if drafted is None else "constant"
