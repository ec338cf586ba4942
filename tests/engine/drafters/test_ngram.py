"""The n-gram drafter: each of its sources, its grades, and its limits."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fimserver.cards import MODELS, get_card
from fimserver.engine.drafters.ngram.drafter import BUILD_TOKENS, NGramDrafter
from fimserver.engine.drafters.ngram.index_cache import IndexCache
from fimserver.engine.drafters.ngram.scoring import MAX_DRAFTS, MAX_NODES, Match, choose
from fimserver.engine.drafters.ngram.suffix_automaton import NO_TOKEN
from fimserver.engine.prompts.prompt import cut_context
from fimserver.engine.prompts.vocabulary import Vocabulary, read_tokenizer
from fimserver.engine.speculation.drafts import DecodeState
from fimserver.types import Request, Snippet

CARD = get_card("nano")
relaxed = settings(deadline=None)  # the machine may be busy
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota"]


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary(read_tokenizer(MODELS / "nano", CARD), CARD)


@pytest.fixture
def ngram(vocabulary):
    return NGramDrafter(vocabulary)


def pick(_logits, _offset):
    return 0, None


def line_of(vocabulary, prefix, suffix="", middle="", *, snippets=(), tokens=448):
    """A line as the engine makes it, with so much of the middle decoded."""
    request = Request(
        prefix, suffix, snippets=tuple(Snippet(f"{i}.py", text) for i, text in enumerate(snippets))
    )
    context = cut_context(request, CARD.model_copy(update={"prompt_tokens": tokens}), vocabulary)
    return DecodeState(
        request, [], list(context.prefix), list(context.suffix), pick, ids=vocabulary.encode(middle)
    )


def texts_of(ngram, line, size=24, source=""):
    """What is proposed, as text, of sources that begin with ``source``."""
    return [
        ngram._vocabulary.decode(d.tokens) for d in ngram.propose(line, size) if d.source.startswith(source)
    ]


def check(ngram, drafts, size):
    """What holds for whatever is proposed."""
    rows = [draft.tokens for draft in drafts]
    assert len(rows) <= MAX_DRAFTS
    assert len({row[: n + 1] for row in rows for n in range(len(row))}) <= MAX_NODES
    assert not any(a == b[: len(a)] for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j)
    for draft in drafts:
        assert 1 <= len(draft.tokens) == len(draft.grades) <= size
        assert all(0 <= grade <= 9 for grade in draft.grades)
        assert all(0 <= token <= ngram._largest and token not in ngram._banned for token in draft.tokens)


class TestSources:
    """Texts whose repeated parts are nowhere else."""

    def test_the_prefix(self, vocabulary, ngram):
        line = line_of(vocabulary, "alpha beta gamma delta epsilon\nzeta = 1\n", middle="alpha beta")
        (draft, *_) = ngram.propose(line, 24)
        assert vocabulary.decode(draft.tokens).startswith(" gamma delta epsilon\nzeta")
        assert draft.source == "ngram.file"

    def test_the_middle_itself(self, vocabulary, ngram):
        line = line_of(vocabulary, "x\n", middle="alpha beta gamma delta\nalpha beta")
        assert texts_of(ngram, line, source="ngram.file")[0].startswith(" gamma delta")

    def test_a_match_that_begins_in_the_prefix_and_ends_in_the_middle(self, vocabulary, ngram):
        text = "one alpha beta gamma\ntwo alpha delta epsilon\n"
        line = line_of(vocabulary, text + "one alpha", middle=" beta")
        first = ngram.propose(line, 24)[0]
        other = NGramDrafter(vocabulary).propose(
            line_of(vocabulary, text + "two alpha", middle=" delta"), 24
        )[0]
        assert vocabulary.decode(first.tokens).startswith(" gamma")
        assert vocabulary.decode(other.tokens).startswith(" epsilon")
        assert (
            first.grades[0]
            > NGramDrafter(vocabulary)
            .propose(line_of(vocabulary, text + "x", middle=" beta"), 24)[0]
            .grades[0]
        )

    def test_the_suffix(self, vocabulary, ngram):
        line = line_of(vocabulary, "x\n", "alpha beta gamma delta\n", middle="alpha beta")
        assert texts_of(ngram, line, source="ngram.suffix")[0].startswith(" gamma delta")

    def test_suffix_and_prefix_are_not_joined(self, vocabulary, ngram):
        line = line_of(vocabulary, " gamma delta\nx\n", "y\n alpha beta", middle=" alpha beta")
        assert not any(" gamma" in text for text in texts_of(ngram, line))

    def test_the_file_beyond_the_prompt(self, vocabulary, ngram):
        filler = "".join(f"name_{i} = {i}\n" for i in range(300))
        line = line_of(
            vocabulary,
            "alpha beta gamma delta\n" + filler,
            filler + "one two three four\n",
            middle="alpha beta",
        )
        assert "alpha" not in vocabulary.decode(line.prefix)
        ngram.observe(line, ended=False)
        while ngram.index_cache.build(2000):
            pass
        line = dataclasses.replace(line, ids=[])
        assert not ngram.propose(line, 24) or "gamma" not in texts_of(ngram, line)[0]
        line.ids += vocabulary.encode("alpha beta")
        assert texts_of(ngram, line, source="ngram.rest")[0].startswith(" gamma delta")
        line.ids += vocabulary.encode("\none two")
        assert texts_of(ngram, line, source="ngram.rest")[0].startswith(" three four")

    def test_other_files(self, vocabulary, ngram):
        line = line_of(vocabulary, "x\n", snippets=["alpha beta gamma delta\n"])
        ngram.observe(line, ended=False)
        line.ids += vocabulary.encode("some words first: alpha beta")
        assert texts_of(ngram, line, source="ngram.open")[0].startswith(" gamma delta")

    def test_the_most_recent_place_goes_first(self, vocabulary, ngram):
        text = "q alpha beta one\nr alpha beta two\ns alpha beta"
        assert texts_of(ngram, line_of(vocabulary, text), 1)[:2] == [" two", " one"]

    def test_what_is_spelt_alike_within_a_word(self, vocabulary, ngram):
        line = line_of(vocabulary, "wonderful_thing = 1\nprint(wonderf")
        assert texts_of(ngram, line, source="ngram.text")[0].startswith("ul_thing")
        line = line_of(vocabulary, "wonderful_thing = 1\nprint(wonderf", middle="ul")
        assert texts_of(ngram, line)[0].startswith("_thing")

    def test_indentation_and_brackets(self, vocabulary, ngram):
        assert "\n    " in texts_of(ngram, line_of(vocabulary, "def something(here):"), source="ngram.layout")
        assert ")\n" in texts_of(ngram, line_of(vocabulary, "print(name"), source="ngram.layout")

    def test_sources_that_differ_are_branches(self, vocabulary, ngram):
        line = line_of(vocabulary, "alpha beta gamma\nx\n", "alpha beta delta\n", middle="alpha beta")
        assert {draft.source for draft in ngram.propose(line, 24)} >= {"ngram.file", "ngram.suffix"}

    def test_what_differs_from_the_second_token_on_is_a_branch_too(self, vocabulary, ngram):
        line = line_of(vocabulary, "one name value\none", "one name index\n")
        found = texts_of(ngram, line)
        assert any(text.startswith(" name value") for text in found)
        assert any(text.startswith(" name index") for text in found)


class TestOtherFiles:
    TEXT = "".join(f"def function_{i}(argument):\n    return argument + {i}\n\n\n" for i in range(200))

    def test_they_are_read_a_little_at_a_time(self, vocabulary, ngram):
        line = line_of(vocabulary, "x", snippets=[self.TEXT])
        ngram.propose(line, 24)
        assert ngram.index_cache.tokens == 0
        ngram.observe(line, ended=False)
        assert 0 < ngram.index_cache.tokens < 3 * BUILD_TOKENS
        before = ngram.index_cache.tokens
        ngram.observe(line, ended=True)
        assert before < ngram.index_cache.tokens < before + 3000
        for _ in range(10):
            ngram.observe(line, ended=True)
        assert vocabulary.decode(ngram.index_cache.want([self.TEXT])[0].ids) == self.TEXT

    def test_what_was_read_stays_for_the_next_middle(self, vocabulary, ngram):
        line = line_of(vocabulary, "x", snippets=[self.TEXT])
        ngram.propose(line, 24)
        while ngram.index_cache.build(2000):
            pass
        line = line_of(vocabulary, "y\n", middle="def function_7", snippets=[self.TEXT])
        assert texts_of(ngram, line, source="ngram.open")[0].startswith(
            "(argument):\n    return argument + 7"
        )

    def test_drafters_can_share_an_index_cache(self, vocabulary):
        index_cache = IndexCache(vocabulary)
        first, second = NGramDrafter(vocabulary, index_cache), NGramDrafter(vocabulary, index_cache)
        first.propose(line_of(vocabulary, "x", snippets=[self.TEXT]), 24)
        while index_cache.build(2000):
            pass
        line = line_of(vocabulary, "y\n", middle="def function_7", snippets=[self.TEXT])
        assert texts_of(second, line, source="ngram.open")

    def test_whole_files_are_read_piece_by_piece_and_are_in_no_prompt(self, vocabulary, ngram):
        line = line_of(vocabulary, "y\n", middle="def function_77")
        plain = line.prefix
        request = dataclasses.replace(line.request, lookup=(Snippet("other.py", self.TEXT),))
        line = dataclasses.replace(line, request=request)
        ngram.propose(line, 24)
        while ngram.index_cache.build(2000):
            pass
        line = dataclasses.replace(line)
        assert texts_of(ngram, line, source="ngram.open")[0].startswith(
            "(argument):\n    return argument + 77"
        )
        assert cut_context(request, CARD, vocabulary).prefix == tuple(plain)
        before = ngram.index_cache.tokens
        edited = Snippet("other.py", self.TEXT + "x = 1\n")
        ngram.propose(dataclasses.replace(line, request=dataclasses.replace(request, lookup=(edited,))), 24)
        while ngram.index_cache.build(2000):
            pass
        assert ngram.index_cache.tokens - before < len(self.TEXT) / 4  # its last piece alone was read again


class TestRecent:
    PREFIX, MIDDLE = "import os\n\nresult = ", "os.path.join(wonderful, folder, name)\n"

    def finish(self, vocabulary, ngram, prefix=PREFIX, middle=MIDDLE):
        line = line_of(vocabulary, prefix)
        ngram.propose(line, 24)
        line.ids += vocabulary.encode(middle)
        ngram.observe(line, ended=False)
        ngram.observe(line, ended=True)
        return line

    def test_the_same_is_asked_again(self, vocabulary, ngram):
        self.finish(vocabulary, ngram)
        assert self.MIDDLE.startswith(texts_of(ngram, line_of(vocabulary, self.PREFIX))[0])
        line = line_of(vocabulary, self.PREFIX, middle="os.path")
        assert texts_of(ngram, line)[0].startswith(".join(wonderful, folder")

    @pytest.mark.parametrize("typed", range(1, 30))
    def test_typing_into_a_suggestion_finds_the_rest(self, vocabulary, ngram, typed):
        self.finish(vocabulary, ngram)
        found = texts_of(ngram, line_of(vocabulary, self.PREFIX + self.MIDDLE[:typed]), source="ngram.")
        rest = self.MIDDLE[typed:]
        assert any(rest.startswith(text[:6]) and len(text) >= 6 for text in found)

    def test_typing_something_else_first_finds_it_where_it_fits_again(self, vocabulary, ngram):
        self.finish(vocabulary, ngram)
        line = line_of(vocabulary, self.PREFIX + "str(", middle="os.path")
        assert texts_of(ngram, line, source="ngram.recent")[0].startswith(".join(wonderful, folder")

    def test_a_middle_that_was_cut_short_is_remembered(self, vocabulary, ngram):
        line = self.finish(vocabulary, ngram)
        line = dataclasses.replace(line, ids=[])
        ngram.observe(line, ended=False)
        line.ids += vocabulary.encode("zeta eta theta iota")
        ngram.observe(line, ended=False)
        del line.ids[3:]  # as where a stop was found
        ngram.observe(line, ended=True)
        assert ngram._recents.automata[0].ids[-4:] == [*line.ids, NO_TOKEN]

    def test_what_never_began_is_not_remembered(self, vocabulary, ngram):
        ngram.observe(line_of(vocabulary, self.PREFIX), ended=True)
        assert not ngram._recents.texts


class TestNewMiddle:
    def test_a_line_that_was_not_seen_is_a_new_middle(self, vocabulary, ngram):
        old = line_of(vocabulary, "alpha beta gamma\n", middle="alpha beta")
        ngram.propose(old, 24)
        new = line_of(vocabulary, "one two three\n", middle="one two")
        assert texts_of(ngram, new)[0].startswith(" three")
        assert texts_of(ngram, old)[0].startswith(" gamma")

    def test_what_was_known_of_the_old_one_does_not_show(self, vocabulary, ngram):
        prefixes = [
            "alpha beta gamma\nalpha",
            "alpha beta gamma\nalphab",
            "alpha beta gamma\nal",
            "other\nalpha",
            "",
        ]
        for prefix in prefixes:
            ngram.propose(line := line_of(vocabulary, prefix, "tail alpha beta"), 24)
            line.ids += vocabulary.encode(" beta gamma delta")
            ngram.observe(line, ended=False)
        for prefix in prefixes:
            line = line_of(vocabulary, prefix, "tail alpha beta")
            assert ngram.propose(line, 24) == NGramDrafter(vocabulary).propose(line, 24)

    def test_a_middle_may_come_token_by_token_or_at_once(self, vocabulary, ngram):
        text = "def first(alpha):\n    return alpha + 1\n\n\ndef second(alpha):\n    return alpha"
        whole, grown = line_of(vocabulary, text), line_of(vocabulary, text)
        whole.ids += vocabulary.encode(" + 2\n\n\ndef third(")
        for token in whole.ids:
            grown.ids.append(token)
            ngram.observe(grown, ended=False)
        assert ngram.propose(grown, 24)[0] == NGramDrafter(vocabulary).propose(whole, 24)[0]


class TestChoice:
    def test_a_longer_match_has_a_higher_grade(self, vocabulary, ngram):
        text = "x alpha beta gamma delta epsilon zeta eta theta iota kappa\n"
        grades = []
        for count in (1, 3, 8):
            words = WORDS[:count]
            found = ngram.propose(
                line_of(vocabulary, text, middle="some more words first: " + " ".join(words)), 24
            )
            grades.append(next(d.grades[0] for d in found if d.source == "ngram.file"))
        assert grades == sorted(set(grades))

    def test_white_space_alone_says_nothing(self, vocabulary, ngram):
        line = line_of(vocabulary, "a\nb\nx = y", middle="\n")
        assert all(d.grades[0] == 0 for d in ngram.propose(line, 24) if d.source == "ngram.file")

    def test_guesses_of_one_token_support_each_other(self):
        alone = choose([Match(0.3, "ngram.file", [5], 0, 1)], 9)[0]
        (both,) = choose([Match(0.3, "ngram.file", [5], 0, 1), Match(0.3, "ngram.open", [5], 0, 1)], 9)
        assert both.grades > alone.grades

    def test_it_goes_on_with_the_longest_match(self):
        guesses = [Match(0.4, "ngram.file", [5, 6], 0, 2), Match(0.3, "ngram.open", [5, 7], 0, 4)]
        assert [draft.tokens for draft in choose(guesses, 9)] == [(5, 7), (5, 6)]

    def test_gaps_end_drafts(self):
        guesses = [
            Match(0.9, "ngram.file", [5, 6, NO_TOKEN, 7], 0, 9),
            Match(0.9, "ngram.open", [NO_TOKEN, 7], 0, 9),
        ]
        assert [draft.tokens for draft in choose(guesses, 9)] == [(5, 6)]

    @relaxed
    @given(st.data(), st.integers(1, 30))
    def test_choices_are_valid(self, vocabulary, data, size):
        sources = st.sampled_from(["ngram.file", "ngram.open", "ngram.layout", "ngram.text"])
        rows = st.lists(st.sampled_from([NO_TOKEN, 100, 101, 102]), min_size=1, max_size=30)
        made = st.builds(Match, st.floats(0.001, 0.999), sources, rows, st.just(0), st.integers(0, 99))
        check(NGramDrafter(vocabulary), choose(data.draw(st.lists(made, max_size=12)), size), size)


class TestLimits:
    numbers = st.one_of(st.integers(-3, 9), st.integers(0, 8191), st.sampled_from([10**6, 2**63, -(2**63)]))
    ids = st.lists(numbers, max_size=40)
    code = st.text("ab(): \n\t\"'.,\u20ac\ud800<|eot|>", max_size=60)

    @settings(max_examples=200, deadline=None)
    @given(
        st.lists(st.tuples(code, code, ids, ids, ids, st.lists(code, max_size=3)), min_size=1, max_size=4),
        st.integers(-1, 40),
    )
    def test_nothing_makes_it_raise_or_propose_what_is_no_text(self, vocabulary, rows, size):
        ngram = NGramDrafter(vocabulary)
        for prefix, suffix, prefix_ids, suffix_ids, ids, snippets in rows:
            request = Request(prefix, suffix, snippets=tuple(Snippet("a", text) for text in snippets))
            line = DecodeState(request, [], prefix_ids, suffix_ids, pick)
            check(ngram, ngram.propose(line, size), max(0, size))
            for start in range(0, len(ids), 3):
                line.ids += ids[start : start + 3]
                check(ngram, ngram.propose(line, size), max(0, size))
                ngram.observe(line, ended=False)
            del line.ids[len(line.ids) // 2 :]
            check(ngram, ngram.propose(line, size), max(0, size))
            ngram.observe(line, ended=True)

    @pytest.mark.parametrize(
        ("prefix", "suffix"), [("", ""), ("x", ""), ("", "x"), ("\n", "\n"), ("\ud800", "\udfff")]
    )
    def test_little_context_is_no_error(self, vocabulary, ngram, prefix, suffix):
        line = line_of(vocabulary, prefix, suffix)
        check(ngram, ngram.propose(line, 24), 24)
        ngram.observe(line, ended=True)

    def test_size_bounds_every_draft(self, vocabulary, ngram):
        line = line_of(vocabulary, "alpha beta gamma delta epsilon\n", middle="alpha beta")
        assert ngram.propose(line, 0) == []
        assert max(len(draft.tokens) for draft in ngram.propose(line, 2)) == 2

    def test_special_tokens_are_never_drafted(self, vocabulary, ngram):
        (eot,) = vocabulary.specials_of(["<|eot|>"])
        prefix = vocabulary.encode("alpha beta gamma")
        line = DecodeState(Request("", ""), [], [*prefix, eot, *prefix, eot, *prefix], [], pick)
        assert not any(eot in draft.tokens for draft in ngram.propose(line, 24))
        line.ids += prefix[:1]
        assert not any(eot in draft.tokens for draft in ngram.propose(line, 24))

    def test_very_long_runs_are_no_matter(self, vocabulary, ngram):
        line = line_of(vocabulary, "\n" * 5000 + "=" * 5000, " " * 5000, tokens=4096)
        check(ngram, ngram.propose(line, 24), 24)
        assert all(0 < guess.chance < 1 for guess in ngram._guesses())
