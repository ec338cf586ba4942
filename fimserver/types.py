"""Values that every part of the program shares."""

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from fimserver.reasons import Reason

Route = Literal["dllm", "ar"]
ROUTES: tuple[Route, ...] = ("dllm", "ar")
RoutePin = Literal["auto", "dllm", "ar"]  # a route that was asked for, or the policy's choice
StopRule = Literal["auto", "line", "block", "none"]
CONTEXT_CHARS = 64 * 1024  # on each side of the cursor; text further away is never tokenised
MAX_TOKENS = 1024  # of one middle
MAX_PROMPT_TOKENS = 128 * 1024
MAX_DEADLINE_MS = 120_000.0
MAX_TEMPERATURE = 2.0
SEEDS = 2**62  # seeds are 0 to this


def other(route: Route) -> Route:
    """The route that was not chosen."""
    return "ar" if route == "dllm" else "dllm"


@dataclass(frozen=True)
class Snippet:
    """Text from another place that helps to fill a middle: another open file, a definition, a recent edit."""

    path: str
    text: str


@dataclass(frozen=True)
class Features:
    """What the text around a cursor looks like. Counts and flags only, no text."""

    language: str  # our name of it; empty: none of ours
    place: Literal["code", "string", "comment"]
    block_opened: bool  # the line, or the one before a fresh line, opens a block
    in_arguments: bool  # within a bracket that is a call's, an index or a literal
    statement_end: bool  # the text left of the cursor is a whole statement already
    empty_body: bool  # a header is before the cursor, and nothing of its body behind
    blank_line: bool  # only blanks left of the cursor
    right_text: bool  # more than closers right of the cursor
    indentation: int  # columns of the cursor's line; of the cursor on a blank one
    bracket_debt: int  # brackets open before the cursor that the suffix does not close
    mid_word: bool  # word characters on both sides
    expected_lines: int  # at least 1


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn, and where a middle ends at the latest.

    ``temperature`` 0 is greedy. The same seed gives the same text at any temperature.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: StopRule = "auto"


@dataclass(frozen=True)
class Request:
    """One middle to be filled. Text is as in the file; line ends may be of any kind.

    ``typed_chars``: so many last characters of the prefix are new since the editor's anchor; layouts with the
    suffix behind the prefix may put them after the middle token, so that the KV cache survives typing.
    """

    prefix: str
    suffix: str
    sampling: Sampling = Sampling()
    path: str = ""  # of the file, as the model may see it
    repo: str = ""  # name of the repository
    snippets: tuple[Snippet, ...] = ()  # the most stable first
    lookup: tuple[Snippet, ...] = ()  # whole files that drafts are copied from, in no prompt
    typed_chars: int = 0
    features: Features | None = None  # where the caller has looked
    deadline_ms: float | None = None  # that the caller waits; a prompt that takes longer to read is cut
    canvas_tokens: int = 0  # slots that a canvas of free length starts with; 0: as the card says

    def with_sampling(self, **changes: Any) -> "Request":
        """Return the same request with some fields of ``sampling`` changed."""
        return replace(self, sampling=replace(self.sampling, **changes))


@dataclass(frozen=True)
class Decision:
    """Why a route was chosen, in numbers. ``why`` is the same in one line."""

    route: Route
    why: str
    policy: str = ""  # empty where the route was pinned
    expected_lexemes: float = 0.0
    bucket: int = 0  # of ``lengths.LABELS``, the likeliest
    predicted_ms: Mapping[Route, float] = field(default_factory=dict)
    keep: Mapping[Route, float] = field(default_factory=dict)  # share of the expected characters that is kept
    propensity: float = 1.0  # of the choice, where it was drawn


@dataclass(frozen=True)
class Slot:
    """One place of a canvas as a person may look at it. ``text`` is empty while the place is masked."""

    text: str
    masked: bool
    fresh: bool = False  # committed by the step just done


class Round(NamedTuple):
    """One pass of speculative decoding, in token ids."""

    shape: tuple[int, int]  # branches, rows of each
    source: str  # whose draft was followed, or would have been
    draft: tuple[int, ...]
    accepted: int  # so many of its first tokens stand
    token: int  # the one after them, the target's own
    drafted: int  # tokens of all drafts in the pass


@dataclass(frozen=True)
class Drafting:
    """What drafts did in one request.

    ``accepted[i]``: rounds in which at least i + 1 drafted tokens stood.
    """

    rounds: int = 0
    drafted: int = 0
    accepted: tuple[int, ...] = ()
    switched_off: int = 0  # times that a drafter was not asked because it would not have paid

    @classmethod
    def of(cls, rounds: Sequence[Round], switched_off: int) -> "Drafting":
        longest = max((r.accepted for r in rounds), default=0)
        accepted = tuple(sum(r.accepted > i for r in rounds) for i in range(longest))
        return cls(len(rounds), sum(r.drafted for r in rounds), accepted, switched_off)


class Prefill(NamedTuple):
    """What reading the prompt took, up to the first token of a middle or the first step of a canvas."""

    rows: int = 0  # that had to be run, as they were not in the cache
    forwards: int = 0
    ms: float = 0.0


class PromptUse(NamedTuple):
    """What of the text around the cursor was in the prompt, and what was left out of it."""

    tokens: int  # of the whole prompt
    limit: int  # that it could have
    lines_above: int = 0  # left out, at the start of the prefix
    lines_below: int = 0  # left out, at the end of the suffix
    snippets: int = 0  # left out


NO_PREFILL = Prefill()


@dataclass(frozen=True)
class Chunk:
    """What one or more forward passes added. The middle is the concatenation of all ``text``.

    ``tokens`` and ``forwards`` count from the start of the request. ``canvas`` is there for the dllm route
    only, ``round`` for the ar route.
    """

    text: str
    tokens: int
    forwards: int
    reason: Reason | None = None  # set on the last chunk, and only there
    canvas: tuple[Slot, ...] = ()
    round: Round | None = None
    drafting: Drafting | None = None  # of the ar route, on the last chunk
    prefill: Prefill = NO_PREFILL  # on the last chunk
    confidence: float | None = None  # on the last chunk: geometric mean probability of its tokens
    prompt: PromptUse | None = None  # on the last chunk


@dataclass(frozen=True)
class Completion:
    """A finished request and what it took."""

    middle: str
    route: Literal["", "dllm", "ar"]  # empty where it never ran
    model: str
    tokens: int
    forwards: int
    ttft_ms: float
    total_ms: float
    reason: Reason
    drafting: Drafting | None = None
    why: str = ""  # this route
    prompt: PromptUse | None = None


def unix_lines(text: str) -> str:
    """Line ends as models know them."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def valid_unicode(text: str) -> str:
    """Replace lone surrogates by question marks, so that the text can be encoded. The length stays."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def ms_since(started: float) -> float:
    """Milliseconds since a reading of ``time.perf_counter``."""
    return (time.perf_counter() - started) * 1000


@dataclass(frozen=True)
class Deadline:
    """How long a request may go on. Asked before every forward pass."""

    expires_s: float | None = None  # of the monotonic clock; ``None``: never
    cancelled: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def of_ms(cls, deadline_ms: float | None) -> "Deadline":
        return cls(None if deadline_ms is None else time.monotonic() + deadline_ms / 1000)

    def left_s(self) -> float:
        """Seconds until the deadline, at least 0; infinity without one."""
        return math.inf if self.expires_s is None else max(0.0, self.expires_s - time.monotonic())

    def spent(self) -> Reason | None:
        """Why to stop now, or ``None`` to go on."""
        if self.cancelled.is_set():
            return Reason.CANCELLED
        if self.expires_s is not None and time.monotonic() >= self.expires_s:
            return Reason.DEADLINE
        return None
