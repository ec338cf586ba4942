"""Options: where they come from, which wins, and what is said about a wrong one."""

import pytest

from fimserver.errors import InputError
from fimserver.settings import Settings, read_settings


@pytest.fixture
def config(tmp_path, monkeypatch):
    path = tmp_path / "config.toml"
    monkeypatch.setattr("fimserver.settings.CONFIG_FILE", path)
    return path


def test_flags_win_over_the_environment_and_that_over_the_file(config, monkeypatch):
    config.write_text("max_tokens = 10\nseed = 1\nthreshold = 0.5\n")
    monkeypatch.setenv("FIMSERVER_MAX_TOKENS", "20")
    monkeypatch.setenv("FIMSERVER_SEED", "2")
    settings = read_settings(max_tokens="30")
    assert (settings.max_tokens, settings.seed, settings.threshold) == (30, 2, 0.5)


def test_a_wrong_value_names_its_source(config, monkeypatch):
    with pytest.raises(InputError, match=r"option max_tokens \(--max-tokens\)"):
        read_settings(max_tokens=0)
    monkeypatch.setenv("FIMSERVER_SEED", "x")
    with pytest.raises(InputError, match="FIMSERVER_SEED"):
        read_settings()
    monkeypatch.delenv("FIMSERVER_SEED")
    config.write_text("colour = 3\n")
    with pytest.raises(InputError, match=r"config\.toml"):
        read_settings()
    config.write_text("= 3\n")
    with pytest.raises(InputError, match=r"config\.toml"):
        read_settings()


def test_every_option_says_what_it_is_in_one_line():
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert "\n" not in field.description
        assert field.description.endswith(".")
