"""The doctor's lines about drafters."""

from __future__ import annotations

import pytest

from fimserver.cards import get_card
from fimserver.commands.doctor import examine_drafters
from fimserver.engine.engines import ModelPool
from fimserver.settings import Settings


@pytest.mark.parametrize(("default", "ok"), [("ngram,diffusion", False), ("ngram", True)])
def test_a_default_drafter_whose_file_is_missing_is_a_fault(
    default: str, ok: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another drafter of the card may be missing."""
    drafters = {"default": default, "diffusion": "missing.safetensors"}
    card = get_card("nano").model_copy(update={"drafters": drafters})
    pool = ModelPool(Settings(device="cpu", threads=1))
    monkeypatch.setattr(pool, "card", lambda _route: card)

    found = {finding.name: finding for finding in examine_drafters(pool)}

    assert found["diffusion"].value.startswith("not used: ")
    assert found["diffusion"].ok is ok
    assert found["ngram"].ok
