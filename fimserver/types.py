"""Values shared by all parts of the program."""

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from fimserver.reasons import Reason

Route = Literal["dllm", "ar"]
ROUTES: tuple[Route, ...] = ("dllm", "ar")
RoutePin = Literal["auto", "dllm", "ar"]  # a pinned route, or ``auto``: the policy's choice
StopRule = Literal["auto", "line", "block", "none"]
CONTEXT_CHARS = 64 * 1024  # on each side of the cursor; text further away is never tokenised
MAX_TOKENS = 1024  # of one middle
MAX_PROMPT_TOKENS = 128 * 1024
MAX_DEADLINE_MS = 120_000.0
MAX_TEMPERATURE = 2.0
SEEDS = 2**62  # seeds are below this


def other(route: Route) -> Route:
    """Return the other route."""
    return "ar" if route == "dllm" else "dllm"


@dataclass(frozen=True)
class Snippet:
    """Text from elsewhere for the prompt: part of another open file, a definition, a recent edit."""

    path: str
    text: str


@dataclass(frozen=True)
class Features:
    """Features of the text around a cursor: counts and flags only, no text."""

    language: str  # our name of it; empty: not supported
    place: Literal["code", "string", "comment"]
    block_opened: bool  # the line, or the one before a blank line, opens a block
    in_arguments: bool  # inside the bracket of a call, an index or a literal
    statement_end: bool  # the text before the cursor is already a complete statement
    empty_body: bool  # a header is before the cursor, and its body is empty
    blank_line: bool  # only blanks before the cursor
    right_text: bool  # more than closers after the cursor on its line
    indentation: int  # columns of the cursor's line; of the cursor on a blank one
    bracket_debt: int  # brackets open before the cursor that the suffix does not close
    mid_word: bool  # word characters on both sides
    expected_lines: int  # at least 1


@dataclass(frozen=True)
class Sampling:
    """Sampling options and limits of a middle.

    ``temperature`` 0 is greedy. The same seed gives the same text at any temperature.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: StopRule = "auto"


@dataclass(frozen=True)
class Request:
    """A middle to fill. Text is as in the file; line ends may be of any kind.

    ``typed_chars``: number of characters at the end of the prefix that were typed since the editor's anchor;
    layouts with the suffix after the prefix may put them after the middle token, so that the KV cache stays
    valid while the user types.
    """

    prefix: str
    suffix: str
    sampling: Sampling = Sampling()
    path: str = ""  # of the file, as shown to the model
    repo: str = ""  # name of the repository
    snippets: tuple[Snippet, ...] = ()  # the most stable first
    lookup: tuple[Snippet, ...] = ()  # whole files for the n-gram drafter, not in the prompt
    typed_chars: int = 0
    features: Features | None = None
    deadline_ms: float | None = None  # of the caller; a prompt that would take longer to prefill is cut
    canvas_tokens: int = 0  # initial slots of a canvas of variable length; 0: as in the card

    def with_sampling(self, **changes: Any) -> "Request":
        """Return the same request with some fields of ``sampling`` changed."""
        return replace(self, sampling=replace(self.sampling, **changes))


@dataclass(frozen=True)
class Decision:
    """A chosen route and the numbers it is based on. ``why`` is the reason in one line."""

    route: Route
    why: str
    policy: str = ""  # empty if no policy was applied
    expected_lexemes: float = 0.0
    bucket: int = 0  # of ``lengths.LABELS``: that of the median
    predicted_ms: Mapping[Route, float] = field(default_factory=dict)
    keep: Mapping[Route, float] = field(default_factory=dict)  # expected share of kept characters
    propensity: float = 1.0  # probability of the choice, if it was drawn


@dataclass(frozen=True)
class Slot:
    """One slot of a canvas, for display. ``text`` is empty while the slot is masked."""

    text: str
    masked: bool
    fresh: bool = False  # committed by the last step


class Round(NamedTuple):
    """One pass of speculative decoding, in token ids."""

    shape: tuple[int, int]  # branches, rows of each
    source: str  # drafter whose draft was followed, or would have been
    draft: tuple[int, ...]
    accepted: int  # number of accepted tokens at its start
    token: int  # bonus token of the target after them
    drafted: int  # tokens of all drafts in the pass


@dataclass(frozen=True)
class Drafting:
    """Drafting statistics of one request.

    ``accepted[i]``: number of rounds in which at least i + 1 drafted tokens were accepted.
    """

    rounds: int = 0
    drafted: int = 0
    accepted: tuple[int, ...] = ()
    switched_off: int = 0  # how often a drafter was skipped because it would not have paid

    @classmethod
    def of(cls, rounds: Sequence[Round], switched_off: int) -> "Drafting":
        longest = max((r.accepted for r in rounds), default=0)
        accepted = tuple(sum(r.accepted > i for r in rounds) for i in range(longest))
        return cls(len(rounds), sum(r.drafted for r in rounds), accepted, switched_off)


class Prefill(NamedTuple):
    """Cost of the prefill, up to the first token of a middle or the first step of a canvas."""

    rows: int = 0  # uncached rows that had to be run
    forwards: int = 0
    ms: float = 0.0


class PromptUse(NamedTuple):
    """Size of the prompt, and how much of the text around the cursor was left out of it."""

    tokens: int  # of the whole prompt
    limit: int  # maximum of ``tokens``
    lines_above: int = 0  # left out, at the start of the prefix
    lines_below: int = 0  # left out, at the end of the suffix
    snippets: int = 0  # left out


NO_PREFILL = Prefill()


@dataclass(frozen=True)
class Chunk:
    """Text added by one or more forward passes. The middle is the concatenation of all ``text``.

    ``tokens`` and ``forwards`` count from the start of the request. ``canvas`` is set only on the dllm route,
    ``round`` only on the ar route.
    """

    text: str
    tokens: int
    forwards: int
    reason: Reason | None = None  # only on the last chunk
    canvas: tuple[Slot, ...] = ()
    round: Round | None = None
    drafting: Drafting | None = None  # of the ar route, on the last chunk
    prefill: Prefill = NO_PREFILL  # on the last chunk
    confidence: float | None = None  # on the last chunk: geometric mean probability of its tokens
    prompt: PromptUse | None = None  # on the last chunk


@dataclass(frozen=True)
class Completion:
    """A finished request and its measurements."""

    middle: str
    route: Literal["", "dllm", "ar"]  # empty if it never ran
    model: str
    tokens: int
    forwards: int
    ttft_ms: float
    total_ms: float
    reason: Reason
    drafting: Drafting | None = None
    why: str = ""  # why this route was chosen
    prompt: PromptUse | None = None


def unix_lines(text: str) -> str:
    r"""Convert all line ends to ``\n``, as models expect."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def valid_unicode(text: str) -> str:
    """Replace lone surrogates by question marks, so that the text can be encoded. The length stays."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def ms_since(started: float) -> float:
    """Milliseconds since a reading of ``time.perf_counter``."""
    return (time.perf_counter() - started) * 1000


@dataclass(frozen=True)
class Deadline:
    """Deadline and cancel flag of a request, checked before every forward pass."""

    expires_s: float | None = None  # on the monotonic clock; ``None``: never
    cancelled: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def of_ms(cls, deadline_ms: float | None) -> "Deadline":
        return cls(None if deadline_ms is None else time.monotonic() + deadline_ms / 1000)

    def left_s(self) -> float:
        """Seconds until the deadline, at least 0; infinity without one."""
        return math.inf if self.expires_s is None else max(0.0, self.expires_s - time.monotonic())

    def spent(self) -> Reason | None:
        """Return why to stop now, or ``None`` to go on."""
        if self.cancelled.is_set():
            return Reason.CANCELLED
        if self.expires_s is not None and time.monotonic() >= self.expires_s:
            return Reason.DEADLINE
        return None
