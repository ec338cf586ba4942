"""What an editor may set: names in both spellings, bad values left out and named."""

import pytest

from fimserver.front.config import Config, changed, from_settings
from fimserver.settings import Settings


@pytest.mark.parametrize(
    ("sent", "expected", "bad"),
    [
        ({"model": "ar"}, {"model": "ar"}, ()),
        ({"maxTokens": 12, "deadline_ms": 300}, {"max_tokens": 12, "deadline_ms": 300.0}, ()),
        ({"disabledLanguages": ["markdown"]}, {"disabled_languages": ("markdown",)}, ()),
        ({"model": "gpt", "maxTokens": 12}, {"max_tokens": 12}, ("model",)),
        ({"maxTokens": -1, "deadlineMs": "soon", "candidates": 2}, {"candidates": 2}, ("max_tokens", "deadline_ms")),
        ({"enabled": None, "unknown": 1}, {}, ()),
        ({"exclude": ["secret/*"]}, {"exclude": ("secret/*",)}, ()),
        ({"exclude": ["a[", "!"]}, {}, ("exclude",)),
        ({"exclude": ["[z-a]"], "model": "ar"}, {"model": "ar"}, ("exclude",)),
        (None, {}, ()),
        ([1], {}, ()),
    ],
)
def test_changed(sent, expected, bad):
    config, names = changed(Config(), sent)
    assert config == Config(**expected)
    assert sorted(names) == sorted(bad)


def test_a_windows_options_start_from_the_users():
    config = from_settings(Settings(model="dllm", max_tokens=9, deadline_ms=700))
    assert (config.model, config.max_tokens, config.deadline_ms) == ("dllm", 9, 700)
