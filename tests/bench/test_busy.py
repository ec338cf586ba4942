"""The benchmark of a busy machine: which ratios it prints, and in which order it asks the ways."""

import pytest

from bench import busy


class Way:
    """Answers with a fixed time, and notes that it was asked."""

    def __init__(self, name, ms, asked):
        self.name, self.ms, self.asked = name, ms, asked

    def answer(self, request):
        self.asked.append(self.name)
        if self.name == busy.LLAMA:
            return {"whole_ms": self.ms * request["tokens"]}
        return {"ms": {"ar": self.ms + request}, "same": {"tokens": 3}}


def test_ways_take_turns_at_being_first_and_llama_cpp_writes_what_was_written():
    asked = []
    workers = {name: Way(name, 10, asked) for name in ("default", "ours", busy.LLAMA)}
    times = busy.timed(workers, 2, 0)
    assert asked == ["default", "ours", busy.LLAMA, "ours", "default", busy.LLAMA]
    assert times == {("default", "ar"): [10, 11], ("ours", "ar"): [10, 11], (busy.LLAMA, "ar"): [30, 30]}


def test_alone_the_requests_are_repeated_for_so_long():
    asked = []
    times = busy.timed({"ours": Way("ours", 1, asked)}, 3, 0.02)
    assert len(times["ours", "ar"]) % 3 == 0
    assert len(times["ours", "ar"]) > 3


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({}, {}),
        ({("ours", 0, "ar"): [10, 20], ("default", 0, "ar"): [10, 20]}, {("ours / default, alone", "ar"): 1}),
        (
            {
                ("ours", 0, "ar"): [10, 20, 10, 20],
                ("default", 0, "ar"): [20, 40, 20, 40],
                ("ours", 2, "ar"): [30, 60],
                ("ours", 2, "dllm"): [1, 1],
            },
            {("ours / default, alone", "ar"): 0.5, ("ours, 2 competitors / alone", "ar"): 3},
        ),
    ],
)
def test_ratios_are_of_the_same_requests(found, expected):
    rows = busy.ratios(found)
    assert {(row["ratio"], row["route"]): row["value"] for row in rows} == expected
    assert all(row["low"] is None for row in rows)  # of fewer than six pairs


def test_many_pairs_have_an_interval():
    ours, default = [10, 11, 12, 13, 14, 15, 16], [10, 10, 10, 10, 10, 10, 10]
    (row,) = busy.ratios({("ours", 0, "ar"): ours, ("default", 0, "ar"): default})
    assert row["low"] < row["value"] < row["high"]
