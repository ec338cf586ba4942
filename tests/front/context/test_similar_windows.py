"""Windows of other open files that share identifiers with the text at the cursor."""

import pytest

from fimserver.front.context.similar_windows import (
    MAX_FILES,
    MAX_SNIPPETS,
    WINDOW_LINES,
    LineWindow,
    OpenFile,
    SimilarWindows,
    jaccard,
    settled,
)
from fimserver.front.documents.mirror import Document, Position

QUERY = "invoice = load_invoice(customer_name)\ntotal = invoice.sum_of_positions()\n\n"


def block(*words):
    """One window that contains ``words``."""
    lines = [f"{word} = {word}\n" for word in words]
    return lines + ["\n"] * (WINDOW_LINES - len(lines))


ABOUT = block("load_invoice", "customer_name", "sum_of_positions")
OTHER = block("parse_header", "socket_address", "retry_count")


def source(name, *blocks, version=1):
    return OpenFile(f"file:///{name}", name, version, [line for lines in blocks for line in lines])


def snapshot(text=QUERY, place=Position(2, 0), version=1):  # noqa: B008 - a tuple
    return Document("file:///me.py", "python", version, text).snapshot(place)


def test_the_window_that_shares_identifiers_is_chosen():
    snippets = SimilarWindows().choose(
        snapshot(), [source("a.py", OTHER, ABOUT, OTHER), source("b.py", OTHER)]
    )
    assert [(snippet.path, snippet.text) for snippet in snippets] == [("a.py", "".join(ABOUT))]


def test_the_same_question_has_the_same_answer():
    sources = [source(f"{i}.py", ABOUT, OTHER, ABOUT) for i in range(5)]
    windows = SimilarWindows()
    first = windows.choose(snapshot(), sources)
    assert (
        windows.choose(snapshot(version=2), sources) == first == SimilarWindows().choose(snapshot(), sources)
    )
    assert len(first) == MAX_SNIPPETS


def test_the_document_itself_and_files_beyond_the_limit_are_not_looked_at():
    mine = OpenFile("file:///me.py", "me.py", 1, ABOUT)
    far = source("far.py", ABOUT)
    assert SimilarWindows().choose(snapshot(), [mine]) == ()
    assert (
        SimilarWindows().choose(snapshot(), [*(source(f"{i}.py", OTHER) for i in range(MAX_FILES)), far])
        == ()
    )


def test_the_word_being_typed_changes_nothing():
    windows, sources = (
        SimilarWindows(),
        [source("a.py", ABOUT), source("b.py", block("total", "totally_else", "customer_name"))],
    )
    seen = {
        windows.choose(snapshot(QUERY + "totally_else"[:n], Position(3, n)), sources)
        for n in range(len("totally_else") + 1)
    }
    assert len(seen) == 1


def test_an_edit_moves_only_the_windows_it_is_in():
    windows = SimilarWindows()
    windows.choose(snapshot(), [source("a.py", OTHER, ABOUT)])
    read = dict(windows._read["file:///a.py"])
    edited = source("a.py", ["x = 1\n", *OTHER[1:]], ABOUT, version=2)
    windows.choose(snapshot(), [edited])
    assert windows._read["file:///a.py"][1] is read[1]
    assert windows._read["file:///a.py"][0] is not read[0]


W = [LineWindow("u", i) for i in range(9)]


@pytest.mark.parametrize(
    ("before", "scores", "after"),
    [
        ([], {W[0]: 0.2, W[1]: 0.3}, [W[1], W[0]]),  # better ones first
        ([], {W[1]: 0.2, W[0]: 0.2}, [W[1], W[0]]),  # equal ones as they come
        ([], {W[0]: 0.01}, []),  # not worth it
        ([W[0], W[1]], {W[0]: 0.2, W[1]: 0.9}, [W[0], W[1]]),  # places stay
        (W[:4], dict.fromkeys(W[:4], 0.3) | {W[5]: 0.4}, W[:4]),  # not much better: nothing moves
        (
            W[:4],
            dict.fromkeys(W[:4], 0.3) | {W[2]: 0.2, W[5]: 0.4},
            [W[0], W[1], W[5], W[3]],
        ),  # much better: takes the place
        (W[:4], dict.fromkeys(W[1:4], 0.3), W[1:4]),  # gone
        (W[:1], {W[0]: 0.06}, W[:1]),  # stays a little below what would let it in
        (W[:1], {W[0]: 0.05}, []),
    ],
)
def test_a_window_stays_until_another_is_much_better(before, scores, after):
    assert settled(before, scores) == tuple(after)
    assert settled(after, scores) == tuple(after)


def test_when_it_is_late_only_what_was_read_is_compared():
    windows, sources = SimilarWindows(), [source("a.py", ABOUT)]
    assert windows.choose(snapshot(), sources, is_late=lambda: True) == ()
    assert len(windows.choose(snapshot(), sources)) == 1
    assert len(windows.choose(snapshot(), [*sources, source("b.py", ABOUT)], is_late=lambda: True)) == 1
    assert len(windows.choose(snapshot(), [*sources, source("b.py", ABOUT)])) == 2


def test_a_closed_document_leaves_nothing():
    windows = SimilarWindows()
    windows.choose(snapshot(), [source("a.py", ABOUT)])
    for uri in ("file:///a.py", "file:///me.py"):
        windows.forget(uri)
    assert not windows._read
    assert not windows._chosen


def test_jaccard():
    assert jaccard(frozenset("abc"), frozenset("bcd")) == 0.5
    assert jaccard(frozenset(), frozenset()) == 0.0
