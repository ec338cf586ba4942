"""Failures of an engine as reasons, and the texts that report an error."""

from __future__ import annotations

import traceback
from collections.abc import Mapping

from fimserver.errors import (
    AwayError,
    BadKeyError,
    CardError,
    FimError,
    GarbledError,
    ModelError,
    NoFimError,
    NonFiniteError,
    OverloadedError,
    TooLongError,
    WarmingError,
    WrongModelError,
)
from fimserver.reasons import Reason

REASONS: Mapping[type[FimError], Reason] = {
    AwayError: Reason.AWAY,
    WarmingError: Reason.LOADING,
    OverloadedError: Reason.OVERLOADED,
    BadKeyError: Reason.BAD_KEY,
    WrongModelError: Reason.WRONG_MODEL,
    NoFimError: Reason.NO_FIM,
    TooLongError: Reason.TOO_LONG,
    GarbledError: Reason.GARBLED,
    ModelError: Reason.NO_MODEL,
    CardError: Reason.NO_MODEL,
    NonFiniteError: Reason.NON_FINITE,
}
# A route that failed so cannot answer at all now: the other one may.
UNABLE = frozenset({*REASONS.values(), Reason.OUT_OF_MEMORY}) - {Reason.TOO_LONG}
# Of these, what will be the same in a minute; the others are tried again with every request.
LASTING = frozenset({Reason.NO_MODEL, Reason.OUT_OF_MEMORY})


def reason_of(error: FimError) -> Reason:
    """The reason of an answer that ended with an error."""
    return next((reason for kind, reason in REASONS.items() if isinstance(error, kind)), Reason.BAD_INPUT)


def problem(error: BaseException) -> str:
    """Text of an error for users: its own if it is one of ours, else its type."""
    return str(error) if isinstance(error, FimError) else f"{type(error).__name__}: see the log of the host"


def where(error: BaseException) -> str:
    """Type and place of an error, without its message, which may quote text of the user."""
    name = type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    return f"{name} at {frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno}" if frames else name
