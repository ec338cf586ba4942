"""Raw FIM prompts: prefix, suffix and files in one text, separated by the special tokens of a model.

A text is such a prompt if all of it can be read in exactly one way as

    [start token] [repository] [file ...]  PREFIX prefix SUFFIX suffix MIDDLE    (PSM)
    [start token] [repository] [file ...]  SUFFIX suffix PREFIX prefix MIDDLE    (SPM)

with the markers of one family, the second marker exactly once. (Codestral is SPM without MIDDLE.) A text that
merely mentions markers begins or ends differently.
"""

from __future__ import annotations

import re
from typing import NamedTuple

STARTS = ("<s>", "<bos>", "<｜begin▁of▁sentence｜>")  # noqa: RUF001 - as DeepSeek writes it
PATH_CHARS = 1000


class Family(NamedTuple):
    """Markers shared by several models. ``repos`` precede the repository's name, ``files`` a path."""

    prefix: str
    suffix: str
    middle: str
    repos: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


FAMILIES = (
    # Qwen, CodeGemma, newer Granite, DreamOn
    Family(
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        ("<|repo_name|>", "<|reponame|>"),
        ("<|file_sep|>", "<|file_separator|>", "<|filename|>"),
    ),
    # StarCoder, StarCoder2, Granite code, Mellum, StableCode
    Family(
        "<fim_prefix>",
        "<fim_suffix>",
        "<fim_middle>",
        ("<repo_name>", "<reponame>"),
        ("<file_sep>", "<filename>"),
    ),
    Family("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek  # noqa: RUF001
    Family("<PRE> ", " <SUF>", " <MID>"),  # CodeLlama; the blanks are the template's
    Family("<PRE>", "<SUF>", "<MID>"),  # the same from clients that omit the blanks
    Family("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    Family("<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>"),  # Seed-Coder
    Family("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM, CodeGeeX
    Family("[PREFIX]", "[SUFFIX]", ""),  # Codestral
)


class RawPrompt(NamedTuple):
    """Parts of a raw prompt. ``files`` are path and text of other files, in their order."""

    prefix: str
    suffix: str
    path: str = ""
    repo: str = ""
    files: tuple[tuple[str, str], ...] = ()


def read_raw(prompt: str) -> RawPrompt | None:
    """Split a raw FIM prompt; ``None`` if ``prompt`` is not one."""
    text = next((prompt.removeprefix(start) for start in STARTS if prompt.startswith(start)), prompt)
    return next((raw for family in FAMILIES if (raw := _read(text, family)) is not None), None)


def _read(prompt: str, family: Family) -> RawPrompt | None:
    if not prompt.endswith(family.middle):
        return None
    text = prompt[: len(prompt) - len(family.middle)]
    firsts = (family.prefix, family.suffix) if family.middle else (family.suffix,)
    places = {text.find(marker): marker for marker in firsts if marker in text}
    if not places:
        return None
    start = min(places)
    first = places[start]
    second = family.suffix if first == family.prefix else family.prefix
    header = text[:start]
    parts = text[start + len(first) :].split(second)
    if len(parts) != 2 or (header and not header.startswith(family.repos + family.files)):
        return None
    prefix, suffix = parts if first == family.prefix else reversed(parts)
    return _with_files(RawPrompt(prefix, suffix), header, family)


def _with_files(raw: RawPrompt, header: str, family: Family) -> RawPrompt:
    """Add repository and files of the header. A last file without text is the one being edited."""
    if not header:
        return raw
    marked = re.split(f"({'|'.join(map(re.escape, family.repos + family.files))})", header)[1:]
    bodies = list(zip(marked[::2], marked[1::2], strict=True))
    repo = next((body.strip() for marker, body in bodies if marker in family.repos), "")
    files = [_file(body) for marker, body in bodies if marker in family.files]
    path = files.pop()[0] if files and not files[-1][1].strip() else ""
    return raw._replace(path=path, repo=repo, files=tuple(file for file in files if file[1].strip()))


def _file(body: str) -> tuple[str, str]:
    """Split a path in the first line from the text after it."""
    path, _, text = body.partition("\n")
    return (path.strip(), text) if len(path) <= PATH_CHARS else ("", body)
