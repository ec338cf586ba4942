"""The acceptance oracle: its arms are what they say, and its sums are right."""

import random

import torch
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from bench import oracle
from bench.oracle_arms import NODES, Ours, arms, prompt_lookup, tree
from fimserver.engine.speculation.drafts import Draft
from fimserver.types import Request

TEXT = "".join(
    f"def function_{i}(argument):\n    total = argument + {i}\n    return total\n\n\n" for i in range(60)
)


def a_case(target, kind="multi"):
    return oracle.Case(kind, "package", "a.py", Request("", ""), target)


def test_prompt_lookup_is_that_of_transformers():
    rng = random.Random(0)
    theirs = PromptLookupCandidateGenerator(num_output_tokens=10, max_matching_ngram_size=2, max_length=10**6)
    for _ in range(300):
        ids = [rng.randrange(6) for _ in range(rng.randrange(1, 30))]
        cut = rng.randrange(1, len(ids) + 1)
        proposed, _ = theirs.get_candidates(torch.tensor([ids]))
        ours = prompt_lookup(ids[:cut])(ids[cut:], [])
        assert [list(row) for row in ours] == [row for row in [proposed[0, len(ids) :].tolist()] if row]


def test_a_pass_gives_what_was_accepted_and_one_more():
    target = [1, 2, 3, 4, 5, oracle.END]
    script = iter([[(1, 2, 9)], [(7,), (4,)], []])
    trace = oracle.play(a_case(target), lambda _middle, _new: next(script), prefilled=False)
    assert (trace.tokens, trace.passes, trace.drafted) == (6, 3, 5)  # 1 2 3, 4 5, the end


def test_the_first_token_may_come_with_the_prompt():
    asked = []

    def arm(middle, new):
        asked.append((middle, new))
        return [(2, 3)]

    trace = oracle.play(a_case([1, 2, 3, oracle.END]), arm, prefilled=True)
    assert (trace.tokens, trace.passes) == (3, 1)
    assert asked == [([1], [1])]


def test_a_middle_that_was_cut_off_can_be_drafted_to_its_last_token():
    trace = oracle.play(a_case([1, 2, 3]), lambda _middle, _new: [(1, 2, 3, 4)], prefilled=False)
    assert (trace.tokens, trace.passes) == (3, 1)


def test_cases_are_the_same_each_time_and_of_every_kind():
    ours = Ours(448)
    packages = {"one": {"a.py": TEXT}, "two": {"b.py": TEXT}}
    first, again = (list(oracle.cases(packages, 12, 0, ours.vocabulary)) for _ in range(2))
    assert first == again
    assert [case.kind for case in first] == list(oracle.KINDS) * 4
    assert {case.package for case in first} == {"one", "two"}
    for case in first:
        middle = ours.vocabulary.decode(case.target[:-1])
        assert middle.strip()
        assert (case.request.prefix + middle + case.request.suffix) in TEXT
        assert case.target[-1] == oracle.END


def test_more_to_read_and_more_branches_help():
    ours = Ours(448)
    (case, *_) = [c for c in oracle.cases({"one": {"a.py": TEXT}}, 6, 0, ours.vocabulary) if c.kind == "body"]
    made = arms(ours, case.request, (), {})
    passes = {name: oracle.play(case, arm, prefilled=False).passes for name, arm in made.items()}
    assert passes["none"] == len(case.target)
    assert passes["ours, file, tree 24"] < passes["none"] / 2
    assert passes["ours, file, tree 24"] <= passes["ours, file, chain 7"]


def test_a_tree_has_its_width():
    drafts = [Draft("", (first, *range(10, 16)), (5,) * 7) for first in range(8)]
    nodes = tree(drafts)
    assert len(nodes) == len(set(nodes)) == NODES
    assert nodes[:7] == [drafts[0].tokens[: n + 1] for n in range(7)]
    assert tree([]) == []
