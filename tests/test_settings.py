"""Options: their sources, their precedence, and the message for a wrong one."""

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


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://box:8765", "http://box:8765"),
        ("http://box:8765/", "http://box:8765"),
        ("http://box/v1", "http://box"),
        ("https://box/fim/v1/", "https://box/fim"),
        (" http://[::1]:80 ", "http://[::1]:80"),
        ("", ""),
    ],
)
def test_the_url_of_a_host(given, url):
    assert read_settings(connect=given).connect == url


@pytest.mark.parametrize(
    "given",
    [
        "http://[::1",
        "http://box:abc",
        "http://box:99999",
        "http://box:0",
        "http://",
        "box:8765",
        "ftp://box",
        "x",
    ],
)
def test_what_is_no_url_is_refused_in_one_line(config, given):
    with pytest.raises(InputError, match=r"option connect \(--connect\)") as caught:
        read_settings(connect=given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", ["a\n", " a ", "a\r\n"])
def test_blanks_around_a_token_are_none_of_it(given):
    assert read_settings(token=given).token == given.strip()


@pytest.mark.parametrize("given", ["a\nb", "käse", "a\x00", "🔑", "a\x7f"])
def test_a_token_that_no_header_can_carry_is_refused_and_not_quoted(config, given):
    with pytest.raises(InputError, match="option token") as caught:
        read_settings(token=given)
    assert given not in str(caught.value)
    assert "ASCII" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["model", "dllm_card", "max_tokens", "temperature", "deadline_ms", "models_dir", "connect"]
)
def test_an_empty_variable_is_none(config, monkeypatch, name):
    usual = getattr(Settings(), name)
    monkeypatch.setenv(f"FIMSERVER_{name.upper()}", "")
    assert getattr(read_settings(), name) == usual or name == "models_dir"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threads", "100000"),
        ("threads", "-1"),
        ("deadline_ms", "1e30"),
        ("deadline_ms", "nan"),
        ("idle_exit_minutes", "inf"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(config, name, value):
    with pytest.raises(InputError, match=f"option {name}"):
        read_settings(**{name: value})
