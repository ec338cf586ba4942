"""Completion request: a cursor in a document with everything that was resolved on arrival."""

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
from fimserver.types import RoutePin, Snippet, StopRule, valid_unicode
from fimserver.wire import CompletionBody, EditorHints, SnippetBody

Surface = Literal["inline", "menu"]
PATH_CHARS = 1000
REPO_CHARS = 200  # limit of the wire


class SelectedCompletion(NamedTuple):
    """The selected item of the editor's completion menu: a suggestion must extend its text."""

    start: Position
    text: str


@dataclass(frozen=True)
class Limits:
    """Limits of a request. ``deadline_ms`` counts from its arrival."""

    max_tokens: int
    temperature: float
    stop: StopRule
    candidates: int
    deadline_ms: float
    min_acceptance: float = 0.0  # minimum probability of acceptance


@dataclass(frozen=True)
class CompletionRequest:
    """A request for suggestions. Times are seconds of the monotonic clock; ids are opaque hashes.

    ``refusal``: why the host is not asked. ``snapshot``: the text on arrival; ``document``: the current text.
    """

    document: Document
    snapshot: Snapshot
    surface: Surface
    invoked: bool
    received_s: float
    limits: Limits
    refusal: Reason | None = None
    refusal_message: str = ""
    language: str | None = None  # parser's name of it; ``None`` for plain text
    path: str = ""  # as shown to the model
    repo: str = ""
    route: RoutePin = "auto"
    turn: RouteTurn | None = None  # of a running comparison, if that picked the route
    popup: SelectedCompletion | None = None
    watch: Watch | None = None  # receives the canvas of each denoising step
    rejected: frozenset[str] = frozenset()  # texts that the user dismissed here
    cells: tuple[str, str] = ("", "")  # text of a notebook's other cells, before and after
    is_cell: bool = False  # of a notebook
    open_documents: Mapping[str, Document] = field(default_factory=dict)  # sources of snippets
    send_at_s: float = 0.0  # earliest time of sending
    prefetch: bool = False
    saves_power: bool = False
    session_id: str = ""
    slot_id: str = ""  # of document and surface: the host answers only the newest request of each
    document_id: str = ""

    @property
    def uri(self) -> str:
        return self.document.uri

    @property
    def slot(self) -> str:
        """Key under which only one request runs: an editor may ask for two surfaces of a document at once."""
        return f"{self.uri}\0{self.surface}"

    @property
    def deadline_s(self) -> float:
        """Deadline on the monotonic clock."""
        return self.received_s + self.limits.deadline_ms / 1000

    @property
    def is_stale(self) -> bool:
        """Whether the document was edited after the request arrived."""
        return self.document.revision != self.snapshot.revision

    @property
    def start(self) -> Position:
        """Start of a suggestion's text: the cursor, or the start of the selected menu item."""
        return self.popup.start if self.popup else self.snapshot.place

    def with_popup(self, prefix: str) -> str:
        """Return the prefix as it would be with the selected menu item accepted."""
        if self.popup is None:
            return prefix
        typed = typed_since(self.popup.start, self.snapshot)
        return prefix[: len(prefix) - len(typed)] + self.popup.text


def typed_since(start: Position, snapshot: Snapshot) -> str:
    """Return the text between the start of the menu item's range and the cursor."""
    same_line = start.line == snapshot.place.line
    return snapshot.line_before[start.column :] if same_line else snapshot.line_before


def completion_body(request: CompletionRequest, context: PromptContext) -> CompletionBody:
    """Build the request to the host.

    The host resolves ``stop = auto``; the client sets the deadline when it sends the body.
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
        prompt=valid_unicode(prefix),
        suffix=valid_unicode(context.suffix),
        max_tokens=limits.max_tokens,
        temperature=limits.temperature,
        n=limits.candidates,
        fimserver=hints,
    )


def _snippet_body(snippet: Snippet) -> SnippetBody:
    return SnippetBody(path=valid_unicode(snippet.path)[:PATH_CHARS], text=valid_unicode(snippet.text))
