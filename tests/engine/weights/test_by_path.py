"""Models named by a path: the card of a file or folder, and a one-line error for a model without FIM."""

import shutil

import pytest

from fimserver.cards import MODELS, get_card, model_folder
from fimserver.engine.engines import ENGINES, ModelPool
from fimserver.engine.weights import by_path
from fimserver.engine.weights.by_path import find_card
from fimserver.errors import CardError, FimError, LoadError
from fimserver.reasons import Reason
from fimserver.settings import Settings
from fimserver.types import Chunk, Deadline, Request, Sampling
from tests.gguf_files import write_gguf
from tests.tiny import MARKERS, make_card, make_checkpoint

CODER = get_card("qwen2.5-coder-0.5b").fim
REQUEST = Request("def f(x):\n    return ", "\n", sampling=Sampling(max_tokens=4, stop="none"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", "qwen2")


@pytest.fixture
def coder(checkpoint, tmp_path):
    return write_gguf(
        checkpoint,
        tmp_path / "some where" / "My_Model.gguf",
        tokens=CODER.tokens,
        general__name="Qwen2.5 Coder 0.5B",
    )


@pytest.mark.parametrize("name_of", [str, lambda path: str(path.parent)], ids=["file", "folder"])
def test_a_coder_of_a_known_family_needs_no_card(name_of, coder):
    pool = ModelPool(Settings(ar_card=name_of(coder), device="cpu", threads=1, drafter="none"))
    card = pool.card("ar")
    assert (card.name, card.fim, card.architecture) == ("my-model", CODER, "qwen2")
    assert model_folder(card, Settings().models_dir) == coder.parent
    assert list(pool.engine("ar").complete(REQUEST, Deadline()))[-1].reason


def test_a_file_is_looked_at_once(coder, monkeypatch):
    first = find_card(str(coder))
    monkeypatch.setattr(by_path, "_find_gguf", lambda _: pytest.fail("read again"))
    assert find_card(str(coder)) == first


def test_a_model_in_several_files(checkpoint, tmp_path):
    write_gguf(checkpoint, tmp_path / "qwen2.5-coder.gguf", tokens=CODER.tokens, tensors_a_file=10)
    card = find_card(str(tmp_path))
    assert len(card.files) == 3
    pool = ModelPool(Settings(ar_card=str(tmp_path), device="cpu", threads=1, drafter="none"))
    assert list(pool.engine("ar").complete(REQUEST, Deadline()))[-1].reason


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"general__name": "Qwen2.5 0.5B Instruct", "tokens": CODER.tokens}, "no known family of coders"),
        (
            {"general__name": "Qwen2.5 Coder 0.5B", "tokens": MARKERS},
            r"lacks the FIM token '<\|fim_prefix\|>'",
        ),
    ],
)
def test_a_model_without_fim_is_one_line(changes, complaint, checkpoint, tmp_path):
    path = write_gguf(checkpoint, tmp_path / "tiny.gguf", **changes)
    with pytest.raises(LoadError, match=complaint) as raised:
        find_card(str(path))
    assert "\n" not in str(raised.value)


def test_what_is_no_model(tmp_path):
    (tmp_path / "text.gguf").write_text("hello")
    for name, complaint in (
        (str(tmp_path / "absent.gguf"), "does not exist"),
        (str(tmp_path / "text.gguf"), "is not a GGUF file"),
        (str(tmp_path / "nowhere"), "does not exist"),
        (str(MODELS), "no GGUF models and no safetensors"),
        ("nobody", "no model card named 'nobody'"),
    ):
        with pytest.raises(FimError, match=complaint) as raised:
            find_card(name)
        assert "\n" not in str(raised.value)


def test_a_folder_of_a_card(tmp_path):
    shutil.copytree(MODELS / "nano", tmp_path / "nano")
    card = find_card(str(tmp_path / "nano"))
    assert card == get_card("nano").model_copy(update={"folder": str(tmp_path / "nano")})


class Echo:
    """A toy engine without weights."""

    def __init__(self, card):
        self.card = card

    def warm(self, _request, _deadline):
        pass

    def fresh_rows(self, _request):
        return 0

    def complete(self, request, _deadline):
        yield Chunk(request.prefix[-3:], 1, 0, Reason.END)


def test_another_kind_of_engine_needs_one_entry_and_no_weights(monkeypatch):
    monkeypatch.setattr("fimserver.engine.engines.find_card", lambda _: make_card("qwen2", engine="echo"))
    with pytest.raises(CardError, match="there is no 'echo'"):
        ModelPool(Settings(ar_card="tiny", device="cpu")).engine("ar")
    monkeypatch.setitem(ENGINES, "echo", lambda card, _resources: Echo(card))
    engine = ModelPool(Settings(ar_card="tiny", device="cpu")).engine("ar")
    assert [chunk.text for chunk in engine.complete(Request("abcdef", ""), Deadline())] == ["def"]
