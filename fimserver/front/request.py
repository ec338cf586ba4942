"""Completion request: a cursor in a document with everything that was resolved for it when it arrived."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from fimserver.front.context.prompt_context import PromptContext
from fimserver.front.documents.mirror import Document, Position, Snapshot
from fimserver.front.feedback.live_ab import RouteTurn
from fimserver.front.host_client import Watch
from fimserver.front.syntax.features import features
from fimserver.reasons import Reason
from fimserver.types import RoutePin, Snippet, StopRule
from fimserver.wire import CompletionBody, EditorHints, SnippetBody

Surface = Literal["inline", "menu"]
PATH_CHARS = 1000
REPO_CHARS = 200  # that the wire takes


class SelectedCompletion(NamedTuple):
    """The selected item of the editor's completion popup: a suggestion has to extend its text."""

    start: Position
    text: str


@dataclass(frozen=True)
class Limits:
    """Limits of the middles that are asked for. ``deadline_ms`` counts from the arrival of the request."""

    max_tokens: int
    temperature: float
    stop: StopRule
    candidates: int
    deadline_ms: float
    min_acceptance: float = 0.0  # less likely ones are not shown


@dataclass(frozen=True)
class CompletionRequest:
    """A request for suggestions. Times are seconds of the monotonic clock; ids are opaque hashes.

    ``refusal``: why nothing is asked for here. ``snapshot`` is the text at arrival, ``document`` the text as
    it is now.
    """

    document: Document
    snapshot: Snapshot
    surface: Surface
    invoked: bool
    received_s: float
    limits: Limits
    refusal: Reason | None = None
    refusal_message: str = ""
    language: str | None = None  # our name of it; ``None`` for plain text
    path: str = ""  # as the model may see it
    repo: str = ""
    route: RoutePin = "auto"
    turn: RouteTurn | None = None  # of a running comparison, where that picked the route
    popup: SelectedCompletion | None = None
    watch: Watch | None = None  # receives the canvas of each denoising step
    rejected: frozenset[str] = frozenset()  # texts that the user dismissed here
    cells: tuple[str, str] = ("", "")  # text of a notebook's other cells, before and after
    is_cell: bool = False  # of a notebook
    open_documents: Mapping[str, Document] = field(default_factory=dict)  # that snippets may come from
    send_at_s: float = 0.0  # while someone types, not sent earlier
    prefetch: bool = False
    saves_power: bool = False
    session_id: str = ""
    slot_id: str = ""  # of document and surface: the host answers the newest of each
    document_id: str = ""

    @property
    def uri(self) -> str:
        return self.document.uri

    @property
    def slot(self) -> str:
        """Where only one request runs at a time: an editor may ask for two surfaces at once."""
        return f"{self.uri}\0{self.surface}"

    @property
    def deadline_s(self) -> float:
        """When an answer comes too late."""
        return self.received_s + self.limits.deadline_ms / 1000

    @property
    def is_stale(self) -> bool:
        """Whether the document was edited after the request arrived."""
        return self.document.revision != self.snapshot.revision

    @property
    def start(self) -> Position:
        """Where the text of a suggestion begins: at the cursor, or where the popup's item begins."""
        return self.popup.start if self.popup else self.snapshot.place

    def with_popup(self, prefix: str) -> str:
        """Return the prefix as it would be with the popup's item accepted."""
        if self.popup is None:
            return prefix
        typed = typed_since(self.popup.start, self.snapshot)
        return prefix[: len(prefix) - len(typed)] + self.popup.text


def typed_since(start: Position, snapshot: Snapshot) -> str:
    """Return the text between the start of what the popup's item would replace and the cursor."""
    same_line = start.line == snapshot.place.line
    return snapshot.line_before[start.column :] if same_line else snapshot.line_before


def completion_body(request: CompletionRequest, context: PromptContext) -> CompletionBody:
    """Build the request to the host.

    The host resolves ``stop = auto``; the client stamps the time that is left.
    """
    limits = request.limits
    prefix = request.with_popup(context.prefix)
    hints = EditorHints(
        route=request.route,
        stop=limits.stop,
        session=request.session_id,
        document=request.slot_id,
        path=request.path[:PATH_CHARS],
        repo=request.repo[:REPO_CHARS],
        snippets=tuple(_snippet_body(snippet) for snippet in context.snippets),
        lookup=tuple(_snippet_body(file) for file in context.lookup),
        typed_chars=0 if request.popup else context.typed_chars,
        features=features(request.language, prefix, context.suffix),
        explicit=request.invoked,
    )
    return CompletionBody(
        prompt=_valid_unicode(prefix),
        suffix=_valid_unicode(context.suffix),
        max_tokens=limits.max_tokens,
        temperature=limits.temperature,
        n=limits.candidates,
        fimserver=hints,
    )


def _snippet_body(snippet: Snippet) -> SnippetBody:
    return SnippetBody(path=_valid_unicode(snippet.path)[:PATH_CHARS], text=_valid_unicode(snippet.text))


def _valid_unicode(text: str) -> str:
    """Return text that can be sent: a lone surrogate becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
