"""Menu items: they begin where the word at the cursor begins, and their documentation is one code block."""

import pytest

from fimserver.front.documents.mirror import Document, Position
from fimserver.front.lsp.items import menu_list
from fimserver.front.outcome import Suggestion


def item(line, text, encoding="utf-16", replace=0, *, insert_replace=False):
    cursor = Position(0, line.index("|"))
    snapshot = Document("file:///a.py", "python", 1, line.replace("|", "") + "\n").snapshot(cursor)
    suggestion = Suggestion(cursor, Position(0, cursor.column + replace), text)
    return menu_list(snapshot, [suggestion], encoding, insert_replace=insert_replace).items[0]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("x = größe_|", "größe_"),
        ("перем|", "перем"),
        ("x = 変数|", "変数"),
        ("naïve|", "naïve"),  # an accent that is a character of its own
        ("हिन्दी|", "हिन्दी"),  # vowel signs and a virama
        ("x.value2|", "value2"),
        ("f(|", ""),
        ("x = 🎉|", ""),
    ],
)
def test_an_item_begins_with_the_word_at_the_cursor(line, word):
    found = item(line, "rest")
    assert found.filter_text == (word or "rest")
    assert found.text_edit.new_text == word + "rest"
    assert found.text_edit.range.end.character - found.text_edit.range.start.character == len(word)


@pytest.mark.parametrize("text", ["plain", "a ``` b", "x = '````'\n```python\n", "`one` and ``two``"])
def test_the_documentation_is_one_code_block(text):
    fence, *inside, last = item("|", text).documentation.value.split("\n")
    assert fence == last + "python"
    assert set(last) == {"`"}
    assert "\n".join(inside) == text
    assert last not in text


def test_what_is_replaced_is_never_only_inserted():
    whole = item("f(|)", "x)", replace=1, insert_replace=True).text_edit
    assert (whole.range.start.character, whole.range.end.character) == (2, 3)
    split = item("f(|)", "x", insert_replace=True).text_edit
    assert split.insert == split.replace
