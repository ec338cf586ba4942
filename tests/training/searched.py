"""A tiny model whose length is searched, for tests of the recipes that fit its search."""

from tests.commands.test_doctor_canvas import CARD
from tests.engine.test_autoregressive import CODE
from tests.tiny import make_checkpoint


def make_searched(tmp_path, monkeypatch, files):
    """A card, its random model in the models folder, and a folder of so many source files."""
    card = tmp_path / "tiny-dream.toml"
    card.write_text(CARD.replace('length = "fixed"', 'length = "search"').replace('cache = "checked"', ""))
    make_checkpoint(tmp_path / "models" / "tiny-dream", "Dream", seed=5)
    sources = tmp_path / "sources"
    sources.mkdir()
    for number in range(files):
        (sources / f"m{number}.py").write_text(CODE.replace("def ", f"def f{number}_"))
    monkeypatch.setenv("FIMSERVER_MODELS_DIR", str(tmp_path / "models"))
    return card, sources
