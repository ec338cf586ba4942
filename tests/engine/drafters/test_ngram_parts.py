"""Parts of the n-gram drafter: automata against brute force, the index cache, and the whitespace rules."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fimserver.cards import MODELS, get_card
from fimserver.engine.drafters.ngram import index_cache as index_cache_module
from fimserver.engine.drafters.ngram.history import RECENT, MiddleHistory
from fimserver.engine.drafters.ngram.index_cache import IndexCache
from fimserver.engine.drafters.ngram.sources import CHUNK_CHARS, SEARCH_CHARS, RequestSources, chunks
from fimserver.engine.drafters.ngram.suffix_automaton import CHAIN, NO_TOKEN, AutomatonCursor, SuffixAutomaton
from fimserver.engine.drafters.ngram.text_match import SearchText, followers
from fimserver.engine.drafters.ngram.whitespace import Layout
from fimserver.engine.prompts.vocabulary import Vocabulary, read_tokenizer
from fimserver.types import Request, Snippet

few = st.lists(st.integers(0, 2), max_size=CHAIN)
CARD = get_card("nano")
relaxed = settings(deadline=None)  # the machine may be busy


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary(read_tokenizer(MODELS / "nano", CARD), CARD)


def automaton(ids):
    grown = SuffixAutomaton()
    grown.extend(ids)
    return grown


def columns(a):
    return a.ids, a.nexts, a.links, a.lengths, a.ends, a.counts, a.last


def places(text, part):
    """The indices in ``text`` at which ``part`` ends."""
    return [end for end in range(len(part) - 1, len(text)) if text[end + 1 - len(part) : end + 1] == part]


class TestAutomaton:
    @relaxed
    @given(few)
    def test_the_link_of_the_newest_state_is_the_longest_end_that_stood_before(self, ids):
        a = automaton(ids)
        longest = max((n for n in range(len(ids)) if places(ids[:-1], ids[len(ids) - n :])), default=0)
        assert a.lengths[max(0, a.links[a.last])] == longest

    @relaxed
    @given(few)
    def test_every_way_on_leads_to_its_most_recent_place(self, ids):
        a = automaton(ids)
        state = max(0, a.links[a.last])
        if state > 0:
            repeated = ids[len(ids) - a.lengths[state] :]
            followed = {ids[end + 1]: end + 1 for end in places(ids[:-1], repeated)}
            assert {token: a.ends[child] for token, child in a.nexts[state].items()} == followed

    @relaxed
    @given(few)
    def test_states_know_how_often_and_where_last_they_stand(self, ids):
        a = automaton(ids)
        for state in range(1, len(a.nexts)):
            end = a.ends[state]
            found = places(ids, ids[end + 1 - a.lengths[state] : end + 1])
            assert (a.counts[state], end) == (len(found), found[-1])

    @relaxed
    @given(few, st.integers(0, CHAIN), st.integers(0, CHAIN))
    def test_rewinding_leaves_what_stood_before(self, ids, fixed, kept):
        fixed = min(fixed, len(ids))
        kept = max(fixed, min(kept, len(ids)))
        a = automaton(ids[:fixed])
        a.extend(ids[fixed:], revocable=True)
        assert columns(a) == columns(automaton(ids))
        a.rewind(kept)
        assert columns(a) == columns(automaton(ids[:kept]))

    def test_what_is_not_revocable_stays(self):
        a = automaton([1, 2, 3])
        a.extend([4], revocable=True)
        with pytest.raises(ValueError, match="not revocable"):
            a.rewind(2)

    @relaxed
    @given(few, few, st.integers(0, 9))
    def test_an_update_gives_the_new_text(self, old, new, revocable):
        a = SuffixAutomaton().updated_to(old, revocable).updated_to(new, revocable)
        assert columns(a) == columns(automaton(new))

    def test_typing_keeps_the_automaton(self):
        a = SuffixAutomaton().updated_to(list(range(100)), 8)
        a.extend([7, 8, 9], revocable=True)
        assert a.updated_to([*range(99), 500, 501], 8) is a
        assert a.updated_to(list(range(50)), 8) is not a

    @relaxed
    @given(few, few)
    def test_a_reader_knows_the_longest_end_that_stands_in_the_other_text(self, text, read):
        reader = AutomatonCursor(automaton(text), "")
        reader.read(read)
        longest = max((n for n in range(1, len(read) + 1) if places(text, read[len(read) - n :])), default=0)
        assert reader.length == longest
        if longest:
            assert reader.automaton.ends[reader.state] == places(text, read[len(read) - longest :])[-1]

    @relaxed
    @given(few, few, st.randoms())
    def test_a_reader_bears_with_a_text_that_grows(self, text, read, rng):
        a = SuffixAutomaton()
        reader, left, at = AutomatonCursor(a, ""), list(text), 0
        while at < len(read):
            if left and rng.random() < 0.5:
                a.extend([left.pop(0)])
            else:
                reader.read(read[at : at + 1])
                at += 1
            assert not reader.length or places(a.ids, read[at - reader.length : at])

    def test_nothing_is_matched_through_a_gap(self):
        reader = AutomatonCursor(automaton([1, NO_TOKEN, 2]), "")
        reader.read([1, NO_TOKEN, 2])
        assert reader.length == 1

    def test_runs_of_one_token_do_not_take_for_ever(self):
        assert (
            len(automaton([7] * 50_000).ids) == 50_000
        )  # minutes, were all states above told of every token


class TestShelf:
    TEXT = "\n".join(f"def function_{i}(argument):\n    return argument + {i}\n" for i in range(200))

    def test_texts_are_read_in_pieces_and_completely(self, vocabulary):
        index_cache = IndexCache(vocabulary)
        (a,) = index_cache.want([self.TEXT])
        sizes = [0]
        while index_cache.build(100):
            sizes.append(len(a.ids))
        assert len(sizes) > 20
        assert all(0 < after - before < 250 for before, after in pairwise(sizes))
        assert vocabulary.decode(a.ids) == self.TEXT

    def test_the_same_text_has_the_same_automaton(self, vocabulary):
        index_cache = IndexCache(vocabulary)
        first = index_cache.want(["a = 1\n", "b = 2\n"])
        assert index_cache.want(["b = 2\n", "a = 1\n"]) == first[::-1]

    def test_what_is_wanted_first_is_read_first(self, vocabulary):
        index_cache = IndexCache(vocabulary)
        first, second = index_cache.want(["a = 1\n" * 50, "b = 2\n" * 50])
        index_cache.build(20)
        assert first.ids
        assert not second.ids

    def test_old_texts_make_room_and_wanted_ones_stay(self, vocabulary):
        index_cache = IndexCache(vocabulary, max_tokens=500)
        for number in range(20):
            (a,) = index_cache.want([f"value_{number} = {number}\n" * 20])
            while index_cache.build(100):
                assert index_cache.tokens < 500
            assert vocabulary.decode(a.ids) == f"value_{number} = {number}\n" * 20
            assert index_cache.tokens < 700

    def test_no_more_is_read_than_there_is_room_for(self, vocabulary):
        index_cache = IndexCache(vocabulary, max_tokens=500)
        index_cache.want([f"value_{number} = {number}\n" * 20 for number in range(20)])
        while index_cache.build(50):
            pass
        assert 500 <= index_cache.tokens < 700

    def test_texts_that_were_never_read_are_forgotten_too(self, vocabulary, monkeypatch):
        monkeypatch.setattr(index_cache_module, "MAX_TEXTS", 5)
        index_cache = IndexCache(vocabulary)
        for number in range(50):
            index_cache.want([str(number)])
        assert len(index_cache._entries) == 5

    @relaxed
    @given(st.lists(st.text(max_size=60), max_size=5), st.integers(1, 50))
    def test_any_text_can_be_read(self, vocabulary, texts, tokens):
        index_cache = IndexCache(vocabulary)
        index_cache.want(texts)
        while index_cache.build(tokens):
            pass
        assert index_cache.tokens == sum(len(entry.automaton.ids) for entry in index_cache._entries.values())


class TestElsewhere:
    def test_chunks_are_the_text_and_stay_while_it_grows(self):
        text = TestShelf.TEXT
        assert "".join(chunks(text)) == text
        assert max(map(len, chunks(text))) <= CHUNK_CHARS
        assert chunks(text + "more\n")[:-1] == chunks(text)[:-1]
        assert chunks("") == [""]
        assert "".join(chunks("x" * 9001)) == "x" * 9001

    def test_the_rest_of_the_file_is_what_the_prompt_does_not_show(self, vocabulary):
        elsewhere = RequestSources(vocabulary)
        request = Request(
            "far left\r\nnear left\n", "near right\nfar right\n", snippets=(Snippet("a.py", "other"),)
        )
        near = [vocabulary.encode(text) for text in ("near left\n", "near right\n")]
        elsewhere.open(request, *near, same_start=False, same_suffix=False)
        assert elsewhere.texts() == {
            "far left\n": "ngram.rest",
            "far right\n": "ngram.rest",
            "other": "ngram.open",
        }

    def test_no_more_is_searched_than_there_is_time_for(self, vocabulary):
        elsewhere = RequestSources(vocabulary)
        snippets = tuple(Snippet(str(i), "x" * 30_000) for i in range(9))
        elsewhere.open(
            Request("left", "right", snippets=snippets), [], [], same_start=False, same_suffix=False
        )
        assert (
            SEARCH_CHARS // 2 < sum(len(place.text) for place in elsewhere.places(["recent"])) <= SEARCH_CHARS
        )


class TestRecents:
    def test_the_last_ones_are_there_and_old_ones_go(self):
        recents = MiddleHistory()
        for number in range(5 * RECENT):
            recents.remember([1], [1000 + number], str(number))
        there = {token for a in recents.automata for token in a.ids if token >= 1000}
        assert {1000 + number for number in range(4 * RECENT, 5 * RECENT)} <= there
        assert len(there) <= 2 * RECENT
        assert list(recents.texts) == [str(number) for number in range(4 * RECENT, 5 * RECENT)]

    def test_the_same_one_is_not_counted_twice(self):
        recents = MiddleHistory()
        for _ in range(3):
            recents.remember([1, 2], [3], "")
        assert recents.automata[0].ids == [1, 2, 3, NO_TOKEN]


class TestLayout:
    @pytest.mark.parametrize(
        ("prefix", "middle", "expected"),
        [
            ("def f(x):", "", "\n    "),
            ("    if x:", "", "\n        "),
            ("class A:\n  def f(self):", "", "\n    "),
            ("if x {", "", "\n    "),
            ("func f() {\n\tg()", "", "\n\t"),
            ("    x = f(a)", "", "\n    "),
            ("    x = f(a", ")", "\n    "),
            ("        return f(a)", "", "\n    "),
            ("    foo(a", "", ")\n    "),
            ("    foo(a[b", "", "])\n    "),
            ("    foo(", "", "\n        "),
            ('    """What it does."""', "", "\n    "),
            ("def f():\n    x = 1\n", "\n", "\n    "),
        ],
    )
    def test_what_comes_next(self, vocabulary, prefix, middle, expected):
        layout = Layout(vocabulary)
        layout.open(prefix, "")
        for char in middle:
            layout.read(char)
        (guess,) = layout.guesses()
        assert vocabulary.decode(guess.ids) == expected

    def test_what_is_closed_on_the_right_stays_open(self, vocabulary):
        layout = Layout(vocabulary)
        layout.open("    foo(a", ")\n")
        assert not layout.guesses()

    @relaxed
    @given(st.text("ab(){}[]:,. \t\n\"'", max_size=60), st.text("ab()[]: \n", max_size=30))
    def test_any_text_will_do(self, vocabulary, prefix, middle):
        layout = Layout(vocabulary)
        layout.open(prefix, middle)
        for char in middle:
            layout.read(char)
            assert all(guess.ids and 0 < guess.chance < 1 for guess in layout.guesses())


class TestSpelling:
    def test_a_word_is_completed_from_where_it_stood(self, vocabulary):
        found = followers("    self.pref", [SearchText("x = self.prefix_ids + y\n")], vocabulary)
        assert vocabulary.decode(found[0].ids).startswith("ix_ids")

    def test_the_longest_and_the_nearest_come_first(self, vocabulary):
        left, right = (
            SearchText("call(alpha, one)\ncall(beta, two)\n"),
            SearchText("z(beta, three)\nz(beta, four)\n", nearest=True),
        )
        found = followers("z(beta, ", [left, right], vocabulary)
        assert [vocabulary.decode(guess.ids)[:3] for guess in found] == ["thr", "two"]

    def test_white_space_is_looked_for_nowhere(self, vocabulary):
        assert not followers("\n    ", [SearchText("a\n    b\n    c")], vocabulary)
