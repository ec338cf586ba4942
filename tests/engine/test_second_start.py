"""A second start of a coder in int8: it imports and measures no more than it needs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fimserver.engine.forward import int8
from tests.gguf_files import gguf_card, write_gguf
from tests.tiny import make_checkpoint

pytestmark = pytest.mark.skipif(not int8.is_exact(), reason="this processor has no exact int8 products")
SCRIPT = """
import sys
from pathlib import Path
import fimserver.commands.complete, fimserver.commands.cursor, fimserver.commands.render
from fimserver.cards import Card
from fimserver.engine.engines import make_ar, pick_device
from fimserver.engine.load import load
from fimserver.engine.runtime import DraftContext, make_runtime
from fimserver.settings import Settings
from fimserver.types import Deadline, Request, Sampling

card = Card.model_validate_json(Path(sys.argv[1]).read_text())
settings = Settings()
runtime = make_runtime(load(card, Path(sys.argv[2]), pick_device("cpu"), "int8"), settings)
engine = make_ar(DraftContext(runtime, settings))
request = Request("def add(a, b):\\n    return ", "\\n", sampling=Sampling(max_tokens=4, stop="none"))
assert list(engine.complete(request, Deadline()))[-1].tokens
print([name for name in ("transformers", "gguf", "accelerate") if name in sys.modules])
"""


def test_a_coder_whose_int8_weights_are_kept_needs_no_transformers(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "qwen2")
    path = write_gguf(checkpoint, tmp_path / "tiny" / "tiny.gguf")
    card = tmp_path / "card.json"
    card.write_text(gguf_card(path, "qwen2").model_dump_json())
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    command = [sys.executable, "-c", SCRIPT, str(card), str(path.parent)]
    first, second = (
        subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
        for _ in range(2)
    )
    assert first.strip() == "['transformers', 'gguf']"  # it reads the file
    assert second.strip() == "[]"
