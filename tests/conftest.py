"""Shared fixtures: the nano model, loaded once, and options with which tests leave cores to others."""

import os

import hypothesis
import pytest
import torch

from fimserver.engine.engines import ModelPool
from fimserver.settings import Settings

pytest_plugins = ["tests.coder"]
torch.set_num_threads(1)
# How long an example takes says more of the machine than of the code.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def _private_folders(tmp_path, monkeypatch):
    """No test sees or touches the models and caches of the person who runs it."""
    for name in [n for n in os.environ if n.startswith("FIMSERVER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FIMSERVER_THREADS", "1")
    monkeypatch.setenv("FIMSERVER_MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr("fimserver.settings.CONFIG_FILE", tmp_path / "none.toml")
    monkeypatch.setattr("fimserver.engine.load._HASHES", tmp_path / "hashes.json")
    monkeypatch.setattr("fimserver.engine.weights.int8_cache.FOLDER", tmp_path / "int8")
    monkeypatch.setattr("fimserver.engine.weights.by_path.KEPT", tmp_path / "cards.json")
    monkeypatch.setattr("fimserver.engine.weights.arithmetic.CHOICE_FILE", tmp_path / "arithmetic.json")
    monkeypatch.setattr("fimserver.engine.kept_costs.COSTS_FILE", tmp_path / "pass_costs.json")
    monkeypatch.setattr("fimserver.engine.kept_rows.ROWS_FILE", tmp_path / "rows_alike.json")
    monkeypatch.setattr("fimserver.engine.kept_costs.SPEEDS_FILE", tmp_path / "prefill_speeds.json")


@pytest.fixture(scope="session")
def nano_models() -> ModelPool:
    return ModelPool(Settings(device="cpu", threads=1, dllm_card="nano", ar_card="nano"))


@pytest.fixture
def nano(nano_models) -> ModelPool:
    """The nano model with nothing in its cache."""
    nano_models.runtime(nano_models.card("ar")).cache.clear()
    return nano_models
