"""Whether passes may join is checked once for the same weights, torch and processor."""

import json

import pytest

from fimserver.engine import kept_rows as module
from fimserver.engine.engines import ModelPool
from fimserver.engine.kept_rows import kept_rows_alike
from fimserver.settings import Settings


class Attempt:
    def __init__(self, found):
        self.found, self.calls = found, 0

    def __call__(self, _network, *, exact):  # noqa: ARG002 - the shape of the real one
        self.calls += 1
        return self.found


@pytest.fixture
def nano_parts(nano):
    runtime = nano.runtime(nano.card("ar"))
    return runtime.loaded, runtime.network


@pytest.mark.parametrize("found", [True, False])
def test_a_second_load_does_not_try_again(found, nano_parts, tmp_path):
    attempt = Attempt(found)
    results = [kept_rows_alike(*nano_parts, attempt, tmp_path / "rows.json") for _ in range(2)]
    assert results == [found, found]
    assert attempt.calls == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(module.torch, "get_num_threads", lambda: 77),
        lambda patch: patch.setattr(module.torch, "__version__", "99.0"),
        lambda patch: patch.setattr("fimserver.engine.weights.arithmetic.processor", lambda: "another one"),
        lambda patch: patch.setattr(module, "weights_hash", lambda _folder: "other weights"),
        lambda patch: patch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2"),
        lambda patch: patch.setattr(module, "TRIED_ROWS", (1, 2)),
    ],
    ids=["threads", "torch", "processor", "weights", "kernels", "rows"],
)
def test_what_products_depend_on_is_tried_for_itself(change, nano_parts, tmp_path, monkeypatch):
    attempt = Attempt(True)
    kept_rows_alike(*nano_parts, attempt, tmp_path / "rows.json")
    change(monkeypatch)
    kept_rows_alike(*nano_parts, attempt, tmp_path / "rows.json")
    assert attempt.calls == 2


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"KEY": 1}', '{"KEY": "yes"}', '{"KEY": null}'])
def test_what_cannot_be_read_is_tried_again(damage, nano_parts, tmp_path):
    path = tmp_path / "rows.json"
    kept_rows_alike(*nano_parts, Attempt(True), path)
    path.write_text(damage.replace("KEY", next(iter(json.loads(path.read_text())))))
    attempt = Attempt(False)
    assert kept_rows_alike(*nano_parts, attempt, path) is False
    assert attempt.calls == 1


def test_a_model_that_is_loaded_keeps_it(tmp_path, monkeypatch):
    path = tmp_path / "kept.json"
    monkeypatch.setattr(module, "ROWS_FILE", path)
    settings = Settings(device="cpu", threads=1, ar_card="nano")
    networks = []
    for _ in range(2):
        models = ModelPool(settings)
        networks.append(models.runtime(models.card("ar")).network)
        (kept,) = json.loads(path.read_text()).values()
        assert networks[-1].joins is kept
        path.write_text(json.dumps(dict.fromkeys(json.loads(path.read_text()), not kept)))
    assert networks[0].joins is not networks[1].joins  # the second one believed the file
