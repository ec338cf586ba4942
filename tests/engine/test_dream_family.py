"""The cards of the Dream family, by name, against a network and samplers written from their descriptions.

A tiny random checkpoint has the tensor names and the config of the original, and the card's own tokens.
"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer

from fimserver.cards import get_card
from fimserver.engine.denoising.denoiser import Denoiser
from fimserver.engine.engines import make_dllm, make_schedule
from fimserver.engine.load import load
from fimserver.engine.runtime import DraftContext, make_runtime
from fimserver.settings import Settings
from fimserver.types import Deadline
from tests.engine.block_reference import dense_logits
from tests.engine.test_autoregressive import REQUEST
from tests.tiny import make_checkpoint

SLOTS = 10
# By card: class in config.json, text left of the prefix and right of the suffix, how a step is filled.
CARDS = {
    "dream-7b": ("Dream", "<|beginoftext|>", "<|endoftext|>", "entropy"),
    "dream-coder-7b": ("Dream", "<|beginoftext|>", "<|endoftext|>", "entropy"),
    "diffucoder-7b": ("Dream", "<|beginoftext|>", "<|endoftext|>", "entropy"),
    "open-dcoder-0.5b": ("qwen2", None, None, "threshold"),
}


def checkpoint(folder, card, architecture):
    """Random weights with the card's tokens; none of them says ``end``, for which we have rules of our own."""
    make_checkpoint(folder, architecture, seed=7)
    path = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    canvas = card.canvas
    wanted = [canvas.mask, canvas.start, canvas.after_suffix, canvas.end, *canvas.forbidden]
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True) for text in dict.fromkeys(filter(None, wanted))]
    )
    tokenizer.save(path)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"][tokenizer.token_to_id(canvas.end)] = 0.0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return tensors, tokenizer


@pytest.fixture(scope="module", params=sorted(CARDS))
def family(request, tmp_path_factory):
    """Engine, logits (T, V) of the reference for ids, the tokenizer, and what a card should say."""
    architecture, *wanted = CARDS[request.param]
    card = get_card(request.param)
    folder = tmp_path_factory.mktemp("family") / card.name
    tensors, tokenizer = checkpoint(folder, card, architecture)
    config = json.loads((folder / "config.json").read_text())
    config.setdefault("rope_theta", config.get("rope_parameters", {}).get("rope_theta"))
    settings = Settings(canvas_cache="none")
    loaded = load(card, folder, torch.device("cpu"))
    engine = make_dllm(DraftContext(make_runtime(loaded, settings), settings))
    return engine, dense_logits(tensors, config, 1 << 20), tokenizer, wanted


def filtered(rows, temperature, top_p):
    """Softmax of the nucleus (Dream's ``top_p_logits``): the token that crosses ``top_p`` is kept."""
    p = (rows / temperature if temperature else rows).softmax(-1)
    if top_p < 1:
        for row in p:
            order = row.argsort(descending=True)
            kept = int((row[order].cumsum(0) <= top_p).sum()) + 1
            row[order[kept:]] = 0.0
    return p / p.sum(-1, keepdim=True)


def sampled(reference, left, right, never, request, fill):
    """The slots after every step of Dream's sampler: logits of row i - 1 are about position i."""
    mask = never[0]
    slots = [mask] * SLOTS
    generator = torch.Generator().manual_seed(request.sampling.seed)
    history = []
    while mask in slots:
        places = [i for i, token in enumerate(slots) if token == mask]
        rows = reference([*left, *slots, *right])[[max(len(left) + i - 1, 0) for i in places]].clone()
        rows[:, never] = -torch.inf
        p = filtered(rows, request.sampling.temperature, request.sampling.top_p)
        greedy = request.sampling.temperature == 0
        tokens = p.argmax(-1) if greedy else torch.multinomial(p, 1, generator=generator)[:, 0]
        probability = p[torch.arange(len(places)), tokens]
        entropy = -(p * (p + 1e-10).log()).sum(-1)
        chosen = [int(entropy.argmin())] if fill == "entropy" else [int(probability.argmax())]
        if fill == "threshold":
            chosen += [i for i in range(len(places)) if probability[i] >= 0.9 and i not in chosen]
        for i in chosen:
            slots[places[i]] = int(tokens[i])
        history.append(list(slots))
    return history


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (0.2, 0.9), (0.4, 0.95)])
@pytest.mark.parametrize("seed", range(2))
def test_its_canvas_is_filled_as_by_the_original_sampler(seed, temperature, top_p, family):
    engine, reference, tokenizer, (start, after, fill) = family
    request = REQUEST.with_sampling(temperature=temperature, top_p=top_p, seed=seed)
    canvas = engine.open_canvas(request)
    assert (canvas.left[0] == tokenizer.token_to_id(start)) if start else (canvas.left[0] < 8192)
    assert (canvas.right[-1] == tokenizer.token_to_id(after)) if after else (canvas.right[-1] < 8192)
    schedule = make_schedule(engine.card, Settings())
    denoiser = Denoiser.of(engine.canvas_card, engine.tokens, schedule, SLOTS)
    ours = [list(state.slots) for state in denoiser.run(canvas.predict, SLOTS, request, Deadline())]
    texts = (engine.canvas_card.mask, *engine.canvas_card.forbidden)
    never = [tokenizer.token_to_id(text) for text in texts]
    assert ours == sampled(reference, canvas.left, canvas.right, never, request, fill)


def test_its_middle_is_found_with_the_card_s_own_length_and_cache(family):
    engine, *_ = family
    chunks = list(engine.complete(REQUEST, Deadline()))
    assert 1 <= chunks[-1].tokens <= engine.canvas_card.max_tokens
    assert "".join(chunk.text for chunk in chunks)
