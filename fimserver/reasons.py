"""Knows the codes that say why a completion ended, or why there is none. Knows nothing of who reads them."""

from enum import StrEnum


class Reason(StrEnum):
    """Why a completion ended where it did."""

    END = "end"  # the model said that the middle is complete
    LINE = "line"  # the stop rule: one line
    BLOCK = "block"  # the stop rule: the block ended
    LENGTH = "length"  # the token limit
    DEADLINE = "deadline"  # time was up; what was good by then is given
    CANCELLED = "cancelled"  # nobody wants it any more
    EMPTY = "empty"  # the model thinks that nothing belongs here
    NON_FINITE = "non_finite"  # the model produced NaN or infinity
    BAD_INPUT = "bad_input"  # the request cannot be used
