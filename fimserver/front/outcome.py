"""Outcome of a completion request: suggestions, or the reason why there are none."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any, Literal

from fimserver.front.documents.mirror import Position
from fimserver.reasons import EXPLANATIONS, Reason
from fimserver.wire import CompletionBody, Usage


@dataclass(frozen=True)
class Suggestion:
    """An edit: replaces the text between two positions of the snapshot with ``text``.

    Usually an insertion: both positions are the cursor.
    """

    start: Position
    end: Position
    text: str
    suggestion_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])


@dataclass(frozen=True)
class Outcome:
    """Result of a request: suggestions, or a reason, and measurements.

    ``by`` names the filter that dropped the middles; ``route`` and ``model`` wrote a suggestion from memory.
    """

    suggestions: tuple[Suggestion, ...] = ()
    reason: Reason = Reason.EMPTY
    source: Literal["", "model", "memory"] = ""
    by: str = ""
    message: str = ""
    uri: str = ""
    usage: Usage | None = None
    route: Literal["", "dllm", "ar"] = ""
    model: str = ""
    total_ms: float = 0.0
    body: CompletionBody | None = field(default=None, repr=False)  # of the request that was sent

    def explained(self) -> dict[str, Any]:
        """Return what happened and why, without any text of the document (``fimserver/explain``)."""
        facts = {
            "reason": self.reason,
            "message": self.message or EXPLANATIONS[self.reason],
            "shown": len(self.suggestions),
            "source": self.source,
            "filter": self.by,
            "route": self.route,
            "model": self.model,
            "uri": self.uri,
            "totalMs": round(self.total_ms, 1),
        }
        if self.usage is None:
            return facts
        used = self.usage
        measured = {
            "ttftMs": round(used.ttft_ms, 1),
            "engineMs": round(used.total_ms, 1),
            "queueMs": round(used.queue_ms, 1),
        }
        chosen = {
            "route": used.route,
            "model": used.model,
            "why": used.decision.why if used.decision else "",
            "tokens": used.tokens,
            "forwards": used.forwards,
            "confidence": None if used.confidence is None else round(used.confidence, 3),
            "chance": None if used.chance is None else round(used.chance, 3),
            "prompt": used.prompt._asdict() if used.prompt else {},
        }
        return facts | chosen | measured
