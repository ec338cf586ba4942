"""Knows how a request ended: with suggestions, or with a reason. Knows nothing of how it got there."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any, Literal

from fimserver.reasons import EXPLANATIONS, Reason
from fimserver.wire import CompletionBody, Usage


@dataclass(frozen=True)
class Suggestion:
    """Text for the editor. ``replace``: so many characters right of the cursor make way for it."""

    text: str
    replace: int
    suggestion_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])


@dataclass(frozen=True)
class Outcome:
    """How a request ended, suggestions or not, and what it took. ``by`` names the filter that dropped everything."""

    suggestions: tuple[Suggestion, ...] = ()
    reason: Reason = Reason.EMPTY
    source: Literal["", "model", "memory"] = ""
    by: str = ""
    message: str = ""
    uri: str = ""
    usage: Usage | None = None
    total_ms: float = 0.0
    body: CompletionBody | None = field(default=None, repr=False)  # what was asked, for whoever asks the same again

    def explained(self) -> dict[str, Any]:
        """For a person: what happened and why, without any text of the document."""
        facts = {
            "reason": self.reason,
            "message": self.message or EXPLANATIONS[self.reason],
            "shown": len(self.suggestions),
            "source": self.source,
            "filter": self.by,
            "uri": self.uri,
            "totalMs": round(self.total_ms, 1),
        }
        if self.usage is None:
            return facts
        used = self.usage
        measured = {"ttftMs": round(used.ttft_ms, 1), "engineMs": round(used.total_ms, 1), "queueMs": round(used.queue_ms, 1)}
        chosen = {
            "route": used.route,
            "model": used.model,
            "why": used.decision.why if used.decision else "",
            "tokens": used.tokens,
            "forwards": used.forwards,
        }
        return facts | chosen | measured
