"""Similarity of a suggestion to the gold text."""

import pytest

from fimserver.ab.analysis.metrics import saved_keys, score
from fimserver.lengths import common_prefix


@pytest.mark.parametrize(
    ("text", "gold", "exact", "first_line", "prefix_chars"),
    [
        ("a + b", "a + b", True, True, 5),
        ("a + b\n", "a + b", True, True, 5),
        ("a + b  ", "a + b\n\n", True, True, 5),
        ("a + b\r\n    x", "a + b\n    x", True, True, 11),
        ("a + b\n    y", "a + b\n    x", False, True, 10),
        ("\n    x\n    y", "\n    x\n    z", False, True, 11),
        ("\n    y", "\n    x", False, False, 5),
        (" a", "a", False, False, 0),
        ("a +", "a + b", False, False, 3),
        ("", "a", False, False, 0),
        ("", "", True, True, 0),
        ("é😀x", "é😀y", False, False, 2),
    ],
)
def test_what_is_equal(text, gold, exact, first_line, prefix_chars):
    scores = score(text, gold)
    assert (scores.exact, scores.first_line, scores.prefix_chars) == (exact, first_line, prefix_chars)


@pytest.mark.parametrize(
    ("text", "gold", "similarity"),
    [
        ("ab", "ab", 1.0),
        (" ab\n", "ab", 1.0),
        ("ab", "cd", 0.0),
        ("abcd", "abxy", 0.5),
        ("", "", 1.0),
        ("", "a", 0.0),
    ],
)
def test_similarity_is_of_stripped_text(text, gold, similarity):
    assert score(text, gold).similarity == similarity


@pytest.mark.parametrize(
    ("text", "gold", "saved"),
    [
        pytest.param("return a", "return a + b", 7, id="right to its end, one key to accept"),
        pytest.param("a", "a + b", 0, id="a key for a key"),
        pytest.param("", "a", 0, id="nothing"),
        pytest.param(
            "x = a\ny", "x = a\nz", 6 - 1 - 1, id="the first line is right, the wrong tail is deleted"
        ),
        pytest.param("x = a\nyyyyyyyyyy", "x = a\nz", 0, id="never at a loss"),
        pytest.param("x = ab", "x = ac", 0, id="a wrong first line is not accepted"),
        pytest.param("x = a\n\n", "x = a", 4, id="white space at the end is not wrong"),
        pytest.param("x = a", "x = a\r\n", 4, id="gold with other line ends"),
    ],
)
def test_saved_keys(text, gold, saved):
    assert saved_keys(text, gold) == saved
    assert score(text, gold).saved_keys == saved


def test_the_common_prefix_ends_at_the_first_difference():
    assert [common_prefix(*pair) for pair in [("", "a"), ("ab", "abc"), ("abc", "axc")]] == [0, 2, 1]
