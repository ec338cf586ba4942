"""Settings of an editor: names in both spellings, unusable values ignored and reported."""

import pytest

from fimserver.front.config import Config, changed, from_settings, setting_problems
from fimserver.settings import Settings


@pytest.mark.parametrize(
    ("sent", "expected", "bad"),
    [
        ({"model": "ar"}, {"model": "ar"}, ()),
        ({"maxTokens": 12, "deadline_ms": 300}, {"max_tokens": 12, "deadline_ms": 300.0}, ()),
        ({"disabledLanguages": ["markdown"]}, {"disabled_languages": ("markdown",)}, ()),
        ({"model": "gpt", "maxTokens": 12}, {"max_tokens": 12}, ("model",)),
        (
            {"maxTokens": -1, "deadlineMs": "soon", "candidates": 2},
            {"candidates": 2},
            ("max_tokens", "deadline_ms"),
        ),
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


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ({"modle": "ar"}, ["'modle': there is no such setting; did you mean model?"]),
        ({"deadline": 5}, ["'deadline': there is no such setting; did you mean deadlineMs?"]),
        ({"MaxTokens": 5, "zzz": 1}, ["did you mean maxTokens?", "'zzz': there is no such setting"]),
        ({"maxTokens": "many"}, ["maxTokens: Input should be a valid integer"]),
        (
            {"max_tokens": 0, "model": "gpt"},
            ["maxTokens: Input should be greater", "model: Input should be 'auto'"],
        ),
        ({"exclude": ["[z-a]"]}, ["exclude: not a glob"]),
        ({"routes": {"python": "gpt"}}, ["routes: Input should be 'dllm' or 'ar'"]),
        ({"model": "ar", "path": "/usr/bin/fimserver", "args": [], "connect": "", "enabled": None}, []),
        (None, []),
    ],
)
def test_a_setting_without_effect_is_named(sent, said):
    problems = setting_problems(sent)
    assert len(problems) == len(said)
    for line in said:
        assert any(line in problem for problem in problems)


def test_a_wrong_value_is_not_repeated():
    assert "hunter2" not in str(setting_problems({"maxTokens": "hunter2", "exclude": ["[z-hunter2"]}))
