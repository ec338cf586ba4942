"""Secrets: redacts likely secrets in the snippets of other files.

A false positive costs a snippet one literal, so every literal assigned to a name such as ``api_key`` is
replaced, whether it looks random or not. Identifiers in code and hashes marked as such stay.
"""

from __future__ import annotations

import re

REDACTED = "<redacted>"
_MAX_MASKED_CHARS = 64 * 1024
# Each pattern scans once: a repeated class is bounded, or nothing follows it, so that no text makes it
# backtrack.
_KEY_BLOCK = re.compile(
    r"(-----BEGIN [A-Z0-9 ]{0,40}KEY[A-Z ]{0,20}-----)[\s\S]*?(-----END [A-Z0-9 ]{1,60}-----|\Z)"
)
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9_-])(?:A[KSB]IA[A-Z0-9]{16}"
    r"|gh[a-z]_[A-Za-z0-9]{16,255}|github_pat_\w{20,255}|gl[a-z]{2,5}-[\w-]{16,255}"
    r"|(?:sk|pk|rk)[-_](?=[\w-]{0,60}\d)[\w-]{16,300}"
    r"|xox[a-z]-[\w-]{10,255}|AIza[\w-]{30,80}|ya29\.[\w-]{20,400}"
    r"|eyJ[\w-]{8,4000}\.[\w-]{8,4000}(?:\.[\w-]{0,4000})?"
    r"|npm_[A-Za-z0-9]{30,80}|pypi-[\w-]{30,400}|hf_[A-Za-z0-9]{20,80}"
    r"|SG\.[\w-]{16,64}\.[\w-]{16,64}|AGE-SECRET-KEY-[A-Z0-9]{40,80}"
    r"|dop_v1_[a-f0-9]{40,80}|shp[a-z]{2}_[a-fA-F0-9]{30,40})"
)
_IN_URL = re.compile(
    r"(://[^\s:/@'\"]{0,80}:)([^\s/@'\"]{1,200})(?=@)|(\bhooks\.slack\.com/services/)[\w/]{10,100}"
)
_BEARER = re.compile(r"(?i:(\b(?:bearer|basic)[ ]))[\w.~+/-]{16,}+=*")
_NAMED = re.compile(
    r"""(?ix) (?:passw(?:or)?d|passphrase|pwd|secret|credential|token
    |(?:api|access|private|secret|auth|encryption|account)[_-]?key)
    s?\d{0,2} ["'\]]{0,2} [ \t]{0,8} (?::[ \t]{0,4}[\w.|\[\] ]{1,40}(?==))?
    (?::=|===?|=>|=|:) [ \t]{0,8} [rbuf]{0,2}
    (?: (["'`]) ([^"'`\r\n]{3,}+) | ([^\s"'`,;(){}\[\]]{6,300}+) (?=[ \t]{0,8}(?:$|\#|\r|\n)) )""",
    re.MULTILINE,
)
_REFERENCE = re.compile(r"\$[{(A-Z_]|\{|<|%[(sd]|/")
_WORD = re.compile(r"[A-Za-z0-9_+/-]{20,}={0,2}")
_LITERAL_BEFORE = re.compile(r"(?:[=:][ \t]{0,4}|^[ \t]{0,40})$", re.MULTILINE)
_LITERAL_AFTER = re.compile(r"[ \t]{0,4}(?:$|#|[\r\n])", re.MULTILINE)
_HASH_BEFORE = re.compile(
    r"(?:sha\d{1,3}|md5|blake\w{1,3}|h1|integrity|checksum|digest|hash|rev|commit)[\"']?"
    r"[-:= ]{1,4}[\"']?$|@$",
    re.IGNORECASE,
)
_HEX = re.compile(r"(?:0x)?(?:[0-9a-f]{32,}|[0-9A-F]{32,})")


def mask_secrets(text: str) -> str:
    """Return ``text``, cut at 64 K characters, with likely secrets replaced by ``<redacted>``.

    Replaces key blocks, tokens of well-known services, passwords in URLs, literals assigned to a name such
    as ``api_key``, and long strings of high entropy that are not marked as a hash.
    """
    text = _KEY_BLOCK.sub(rf"\1{REDACTED}\2", text[:_MAX_MASKED_CHARS])
    text = _TOKEN.sub(REDACTED, text)
    text = _IN_URL.sub(lambda found: f"{found[1] or found[3]}{REDACTED}", text)
    text = _BEARER.sub(rf"\1{REDACTED}", text)
    text = _NAMED.sub(_mask_value, text)
    return _WORD.sub(_mask_random, text)


def _mask_value(found: re.Match[str]) -> str:
    """Replace a literal, or a bare value that cannot be code. References such as ``${TOKEN}`` stay."""
    value = found[2] or found[3]
    keeps = bool(_REFERENCE.match(value)) or (found[2] is None and not _is_bare_secret(value))
    return found[0] if keeps else found[0][: -len(value)] + REDACTED


def _is_bare_secret(value: str) -> bool:
    return (
        any(char.isdigit() for char in value) and any(char.isalpha() for char in value) and "." not in value
    )


def _mask_random(found: re.Match[str]) -> str:
    word = found[0]
    pieces = found[0].split("/")
    if _HASH_BEFORE.search(found.string, max(0, found.start() - 24), found.start()):
        return word
    if not _is_literal(found.string, found.start(), found.end()):
        return word
    if len(pieces) > 1 and any(len(piece) in {40, 64} and _HEX.fullmatch(piece) for piece in pieces):
        return word  # a commit hash in a URL
    is_encoded = {char.islower() for char in word if char.isalpha()} == {True, False} and _is_random(
        word.replace("/", "")
    )
    return REDACTED if is_encoded or any(map(_is_random, pieces)) else word


def _is_literal(text: str, start: int, end: int) -> bool:
    """Whether a span is in quotes, a whole assigned value, or a whole line: not an identifier in code."""
    if text[start - 1 : start] in {'"', "'", "`"} or text[end : end + 1] in {'"', "'", "`"}:
        return True
    return bool(_LITERAL_BEFORE.search(text, max(0, start - 48), start) and _LITERAL_AFTER.match(text, end))


def _is_random(word: str) -> bool:
    """Whether a word looks random: many different characters that often change their kind."""
    word = word[:512].rstrip("=")
    if len(word) < 20 or word.isdigit():
        return False
    if _HEX.fullmatch(word):
        return len(set(word)) >= 10
    kinds = [0 if char.isdigit() else 1 if char.islower() else 2 for char in word if char.isalnum()]
    changes = sum(map(int.__ne__, kinds, kinds[1:])) / max(1, len(kinds))
    needed = 0.45 if len(set(kinds)) > 2 else 0.5 if 0 not in kinds else 0.29
    return len(set(word)) >= 13 and changes >= needed and len(kinds) > 0.85 * len(word)
