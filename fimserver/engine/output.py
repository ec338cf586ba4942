"""Knows how ids become text that may be shown, and where the caller's stop rule cuts it. Knows nothing of networks."""

from __future__ import annotations

from fimserver.engine.vocabulary import Vocabulary
from fimserver.reasons import Reason
from fimserver.types import Request, StopRule

_CLOSERS = " \t)]}>\"'`:,;"
_OPENERS = (":", ",", "(", "[", "{", "\\", '"""', "'''", "=>", "->")


def stop_rule(request: Request) -> StopRule:
    """``auto`` means one line where code stands right of the cursor, or left of it and opens nothing; else no rule."""
    if request.stop != "auto":
        return request.stop
    left = request.prefix.rsplit("\n", 1)[-1].strip()
    right = request.suffix.split("\n", 1)[0].strip(_CLOSERS + "\r")
    return "line" if right or (left and not left.endswith(_OPENERS)) else "none"


def indentation(line: str) -> int:
    """Width of the blanks that a line starts with."""
    return len(line) - len(line.lstrip(" \t"))


class Output:
    """The text of a growing list of ids. Incomplete characters wait; the stop rule cuts."""

    def __init__(self, vocabulary: Vocabulary, request: Request) -> None:
        self._vocabulary = vocabulary
        self._rule = stop_rule(request)
        line = request.prefix.rsplit("\n", 1)[-1]
        # After a header the block is its body, which is indented further than the header.
        self._indent = indentation(line.expandtabs()) + int(line.rstrip().endswith(":"))
        self.text = ""
        self.reason: Reason | None = None

    def show(self, ids: list[int]) -> str:
        """Text that the ids add to what was shown before; sets ``reason`` when the stop rule ends it."""
        text = self._vocabulary.decode(ids).rstrip("\ufffd")
        if (end := self._end(text)) is not None:
            text = text[:end]
            self.reason = Reason.LINE if self._rule == "line" else Reason.BLOCK
        if self._rule == "block":  # a line that may yet turn out to lie outside waits
            text = text.rstrip() if "\n" in text[len(text.rstrip()) :] else text
        added = text[len(self.text) :]
        self.text = text if len(text) > len(self.text) else self.text
        return added

    def _end(self, text: str) -> int | None:
        """Offset at which the stop rule ends ``text``, if it does."""
        if self._rule == "line":
            visible = len(text) - len(text.lstrip())
            newline = text.find("\n", visible)
            return newline if newline >= 0 and text.strip() else None
        if self._rule == "block":
            return self._dedent(text)
        return None

    def _dedent(self, text: str) -> int | None:
        """Where a line begins (its newline) that lies outside the block that the cursor is in."""
        offset = 0
        for i, line in enumerate(text.split("\n")):
            if i > 0 and line.strip() and indentation(line.expandtabs()) < self._indent:
                return offset - 1
            offset += len(line) + 1
        return None
