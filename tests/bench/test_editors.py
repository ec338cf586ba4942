import itertools
import json

import pytest

from bench.editors import LETTERS, Seen, other_key, places, report, seen


class Answered:
    """An editor whose server explains its last answer so."""

    def __init__(self, **explained):
        self._explained = explained

    def told(self):
        return self._explained


@pytest.fixture
def passed(tmp_path):
    """Writes down messages that passed: who sent it, its method, its id, when, and how many items it has."""

    def write(*messages):
        keys = ("from", "method", "id", "t", "items")
        lines = [json.dumps(dict(zip(keys, message, strict=True))) for message in messages]
        (tmp_path / "traffic-1.jsonl").write_text("\n".join(lines))
        return tmp_path

    return write


ASKED = ("editor", "textDocument/inlineCompletion", 7, 10.2, None)
ANSWERED = ("server", None, 7, 10.4, 1)


def test_a_key_is_measured_from_the_press_to_the_ghost_text(passed):
    editor = Answered(source="model", reason="line", engineMs=150.0)
    one = seen(passed(ASKED, ANSWERED), editor, (10.0, 10.5))
    assert one == Seen(10.0, 10.2, 10.4, 10.5, 150.0)
    assert [round(part) for part in one.parts()] == [500, 200, 150, 50, 100]


def test_a_key_without_ghost_text_has_the_reason_code(passed):
    assert seen(passed(), Answered(source="model", reason="syntax"), None) == "no ghost text: syntax"


def test_a_key_answered_from_memory_does_not_count(passed):
    editor = Answered(source="memory", reason="line")
    assert seen(passed(ASKED, ANSWERED), editor, (10.0, 10.5)) == "answered from memory"


def test_a_key_that_made_two_requests_does_not_count(passed):
    second = ("editor", "textDocument/inlineCompletion", 8, 10.3, None)
    editor = Answered(source="model", reason="line", engineMs=150.0)
    assert seen(passed(ASKED, second, ANSWERED), editor, (10.0, 10.5)) == "2 requests, 0 answered"


def test_the_key_is_the_files_own_where_the_ghost_text_begins_otherwise():
    assert other_key("", "x") == "x"
    assert other_key("name", "x") == "x"


def test_a_key_that_the_ghost_text_begins_with_is_replaced_by_a_letter_that_it_does_not_begin_with():
    assert other_key("xs", "x") == LETTERS[0]
    assert other_key(LETTERS[0] + "elf", LETTERS[0]) == LETTERS[1]


def test_places_are_cut_lines_whose_next_character_is_the_key():
    for place in itertools.islice(places(), 20):
        line = place.text.split("\n")[place.line]
        assert len(line) == place.column
        assert line
        assert not place.key.isspace()


def test_places_are_the_same_each_time():
    assert list(itertools.islice(places(), 5)) == list(itertools.islice(places(), 5))


KEY = Seen(10.0, 10.2, 10.4, 10.5, 150.0)


def test_an_editor_with_too_few_keys_is_named_and_the_other_one_is_written(tmp_path):
    out = tmp_path / "out.json"
    problem = report({"neovim": [KEY, KEY], "vscode": [KEY]}, out)
    assert problem == "vscode: only 1 keys made ghost text appear: give it more --seconds"
    written = json.loads(out.read_text())
    assert written["count"] == {"neovim": 2}
    assert list(written["rows"]) == ["neovim"]
    assert written["rows"]["neovim"]["key to ghost text"] == [500.0, 500.0]


def test_without_enough_keys_the_figures_from_before_stay(tmp_path):
    assert report({"neovim": []}, tmp_path / "out.json").startswith("neovim: only 0 keys")
    assert not (tmp_path / "out.json").exists()
