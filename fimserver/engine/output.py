"""Output text of a growing list of token ids: which part can be shown, and where the middle ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from fimserver.engine.prompts.vocabulary import Vocabulary
from fimserver.languages import language_of_path
from fimserver.reasons import Reason
from fimserver.stopping.around import Around
from fimserver.stopping.rules import RULES, Endings
from fimserver.types import Request, StopRule, unix_lines

_CLOSERS = " \t)]}>\"'`:,;"
_OPENERS = (":", ",", "(", "[", "{", "\\", '"""', "'''", "=>", "->")


def stop_rule(request: Request) -> StopRule:
    """Resolve the stop rule ``auto``.

    It is one line if there is code right of the cursor, or code left of it that opens no block; else no
    limit.
    """
    if request.sampling.stop != "auto":
        return request.sampling.stop
    left = request.prefix.rsplit("\n", 1)[-1].strip()
    right = request.suffix.split("\n", 1)[0].strip(_CLOSERS + "\r")
    return "line" if right or (left and not left.endswith(_OPENERS)) else "none"


def make_endings(request: Request, rules: frozenset[str] = RULES) -> Endings | None:
    """Return the rules that end the middle of a request; ``None`` if its stop rule is ``none``."""
    if request.sampling.stop == "none":
        return None
    path = PurePosixPath(request.path)
    language = (request.features and request.features.language) or language_of_path(request.path)
    language = language or path.suffix[1:].lower() or path.name.lower()  # such as toml, dockerfile
    return Endings(
        Around(unix_lines(request.prefix), unix_lines(request.suffix), language), stop_rule(request), rules
    )


class MiddleText:
    """The text of a growing middle: which part can be shown, and the reason if a rule ends it."""

    def __init__(self, request: Request) -> None:
        self.endings = make_endings(request)
        self._whole = ""
        self.text = ""
        self.reason: Reason | None = None

    def show(self, whole: str) -> str:
        """Return what ``whole``, the text so far, adds to the shown text; sets ``reason`` at its end."""
        self._whole = whole
        if self.endings is not None and (end := self.endings.end(whole)):
            self.reason = end.reason
            return self._shown(whole[: end.chars])
        return self._shown(whole[: self.endings.settled(whole)] if self.endings else whole)

    def rest(self) -> str:
        """Text that was held back and is part of the middle after all, as nothing follows it."""
        return "" if self.reason else self._shown(self._whole.rstrip("\n") if self.endings else self._whole)

    def _shown(self, text: str) -> str:
        added = text[len(self.text) :]
        self.text = text if len(text) > len(self.text) else self.text
        return added


class Output:
    """The text of a growing list of ids, without incomplete characters and text that a rule may remove."""

    def __init__(self, vocabulary: Vocabulary, request: Request, held: str = "") -> None:
        """``held``: the end of the prefix that the first id repeats (token healing, ``healing.py``)."""
        self._held_chars = len(held)
        self._vocabulary = vocabulary
        self._middle = MiddleText(request)

    @property
    def text(self) -> str:
        """The text shown so far."""
        return self._middle.text

    @property
    def reason(self) -> Reason | None:
        """Why a rule ended the middle, if one did."""
        return self._middle.reason

    def show(self, ids: Sequence[int]) -> str:
        """Return what the ids add to the shown text; sets ``reason`` if a rule ends the middle."""
        return self._middle.show(self._decode(ids))

    def rest(self) -> str:
        """Text that was held back and is part of the middle after all, as nothing follows it."""
        return self._middle.rest()

    def useful(self, ids: Sequence[int], draft: Sequence[int]) -> int:
        """Return how many tokens of a draft after ``ids`` can be used: up to the one that ends the middle."""
        endings = self._middle.endings
        if endings is None or endings.peek(self._decode([*ids, *draft])) is None:
            return len(draft)
        sizes = range(1, len(draft))
        return next((n for n in sizes if endings.peek(self._decode([*ids, *draft[:n]]))), len(draft))

    def _decode(self, ids: Sequence[int]) -> str:
        return self._vocabulary.decode(ids)[self._held_chars :].rstrip("\ufffd")
