"""Privacy: decides which files neither get nor feed completions.

Three lists decide by name: files that always hold secrets; files that usually do (``credentials*``), except
source files, so that ``id_generator.py`` and ``test_credentials.py`` are completed; and generated files.
Then ``.gitignore`` and ``.fimignore`` decide, from the workspace root down, with git's rules. Content decides
last.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path, PurePath
from typing import NamedTuple

from pathspec import GitIgnoreSpec

from fimserver.reasons import Reason

# In the syntax of .gitignore, in lower case, separated by blanks.
ALWAYS_PRIVATE = """
.env* *.env .envrc .dev.vars .flaskenv *.pem *.key *.p8 *.p12 *.pfx *.pkcs12 *.ppk *.kdb *.kdbx *.jks
*.keystore *.keytab *.asc *.gpg *.pgp *.agekey *.ovpn *.mobileprovision .netrc _netrc .npmrc .yarnrc
.yarnrc.yml .pypirc .git-credentials .gitcookies .pgpass .my.cnf .mylogin.cnf .htpasswd .dockercfg
**/.docker/config.json .boto .s3cfg .vault-token .vault_pass* .terraformrc terraform.rc *.tfstate
*.tfstate.* *.tfvars *.tfvars.json kubeconfig *.kubeconfig .*_history .xauthority .aws/ .azure/ .gcloud/
**/.config/gcloud/ **/.config/gh/ .kube/ .ssh/ .gnupg/ .password-store/
"""
USUALLY_PRIVATE = """
id_* credentials* .credentials* *_credentials *_credentials.* secret secrets secret.* secrets.* .secret*
*.secret *.secrets *-secret.* *-secrets.* *_secret.* *_secrets.* kubeconfig* service-account*
service_account* passwords.* password.* token.txt
"""
GENERATED = """
*.min.js *.min.mjs *.min.css *.bundle.js *.map *.lock *.lockfile *-lock.json *-lock.yaml *.lock.json
npm-shrinkwrap.json go.sum *_pb2.py *_pb2.pyi *_pb2_grpc.py *.pb.go *.pb.cc *.pb.h *_pb.js *_pb.ts *_pb.d.ts
*.g.dart *.freezed.dart *.g.cs *.designer.cs *.generated.* *_generated.* *.snap
"""
SOURCE = """
.asm .c .cc .clj .cljs .cpp .cs .css .cu .cxx .d .dart .elm .erl .ex .exs .f90 .fs .go .groovy .h .hh .hpp
.hrl .hs .html .hxx .java .jl .js .jsx .kt .kts .less .lua .m .mjs .ml .mli .mm .mts .nim .php .pl .pm .py
.pyi .pyx .r .rb .rs .scala .scss .sol .svelte .swift .ts .tsx .v .vb .vhd .vue .zig
"""
IGNORE_FILES = (".gitignore", ".fimignore")  # the later one takes precedence

CHECKED_LINES = 100
CHECKED_CHARS = 32 * 1024
CHECKED_LINE_CHARS = 4096  # of one line: a long one must not hide those below it
LOOK_AGAIN_S = 3.0
_MAX_IGNORE_BYTES = 128 * 1024
_MAX_NAMES = 4096

_SAYS_GENERATED = re.compile(
    r"^\s*(?://|\#|/?\*|--|;|<!--|%|@generated)"  # only comments count
    r"[^\n]*?(?:@generated\b|\bgenerated\b[^\n]*\bdo not (?:edit|modify)|\bdo not"
    r" (?:edit|modify)\b[^\n]*\bgenerated\b"
    r"|<auto-?generated|\b(?:auto-?|automatically |this file (?:is|was) )generated"
    r" (?:by|from|file|code|with|using)\b)"
    r"|^\s*@generated\b",
    re.IGNORECASE,
)
_LONG_LINE = 500  # characters
_COMMENT = re.compile(r"\s*(?://|/?\*|#|--|<!--)")
# The checked part of a text may end inside a literal.
_LITERAL = re.compile(
    r"""\bdata:[^\s"'`<>()]*|"(?:\\.|[^"\\\n])*+(?:"|$)|'(?:\\.|[^'\\\n])*+(?:'|$)"""
    r"""|`(?:\\.|[^`\\\n])*+(?:`|$)"""
)
_CONTROL = dict.fromkeys([*range(8), *range(14, 27), *range(28, 32), 127, 0xFFFD])


class _Ignored(NamedTuple):
    """Cached rules of one folder, and the state of the files that they were read from."""

    looked_s: float
    stamp: tuple[tuple[int, int], ...]
    rules: _Rules


class _Rules(NamedTuple):
    """Rules of one folder; ``files`` has the name of each rule's file."""

    spec: GitIgnoreSpec
    files: tuple[str, ...]


class _Verdict(NamedTuple):
    """Why a file gets no completions, as a code and as a sentence."""

    reason: Reason
    why: str


PRIVATE_NAME = "files of this name may hold secrets"
EXCLUDE_SETTING = "the setting exclude names it"
GENERATED_NAME = "files of this name are generated"


class Privacy:
    """Verdicts on files.

    ``globs`` are the user's, in the syntax of .gitignore; ``~`` is the home folder.
    """

    def __init__(
        self, roots: Sequence[Path], globs: Sequence[str] = (), *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        both = [form for root in roots for form in (root.absolute(), Path(os.path.realpath(root)))]
        self.roots = tuple(sorted(dict.fromkeys(both), key=lambda root: len(root.parts), reverse=True))
        lists = (ALWAYS_PRIVATE, USUALLY_PRIVATE, GENERATED)
        self._always, self._usually, self._generated = (
            GitIgnoreSpec.from_lines(names.split()) for names in lists
        )
        self._source = frozenset(SOURCE.split())
        self._globs = GitIgnoreSpec.from_lines(
            [re.sub(r"^(!?)~/", rf"\1{Path.home().as_posix()}/", glob) for glob in globs]
        )
        self._clock = clock
        self._names: dict[Path, tuple[float, _Verdict | None]] = {}
        self._folders: dict[Path, _Ignored] = {}

    def verdict(self, path: Path | None, lines: Sequence[str]) -> Reason | None:
        """Return why a file is excluded, or ``None`` if it is not. Untitled documents are not."""
        return self.by_name(path) or (None if path is None else by_content(lines))

    def by_name(self, path: Path | None) -> Reason | None:
        """Return the part of the verdict that needs no text. For a link, its target's name counts too."""
        verdict = self._by_name(path)
        return verdict.reason if verdict else None

    def why(self, path: Path | None) -> str:
        """Return which list or ignore file excludes a file by its name, or an empty string."""
        verdict = self._by_name(path)
        return verdict.why if verdict else ""

    def _by_name(self, path: Path | None) -> _Verdict | None:
        if path is None:
            return None
        now = self._clock()
        until, verdict = self._names.get(path, (now, None))
        if until <= now:
            if len(self._names) >= _MAX_NAMES:
                self._names.clear()
            real = Path(os.path.realpath(path))
            verdict = self._judge(Path(os.path.normpath(path))) or self._judge(real)
            self._names[path] = (now + LOOK_AGAIN_S, verdict)
        return verdict

    def root_of(self, path: Path) -> Path | None:
        """Return the innermost workspace root of a path, or ``None``. The path need not exist."""
        return next((root for root in self.roots if path.is_relative_to(root)), None)

    def shown(self, path: Path) -> str:
        """Return the path as shown to a model: from the workspace root, or just the name; never the home."""
        root = self.root_of(path)
        return path.name if root is None else path.relative_to(root).as_posix()

    def _judge(self, path: Path) -> _Verdict | None:
        whole = _posix(path)
        root = self.root_of(path)
        inside = _posix(path if root is None else path.relative_to(root))
        is_source = path.suffix.lower() in self._source
        if self._always.match_file(whole.lower()) or (
            not is_source and self._usually.match_file(inside.lower())
        ):
            return _Verdict(Reason.EXCLUDED, PRIVATE_NAME)
        if self._globs.match_file(inside) or self._globs.match_file(whole):
            return _Verdict(Reason.EXCLUDED, EXCLUDE_SETTING)
        if root is not None and (file := self._ignored_by(root, inside.split("/"))):
            return _Verdict(Reason.EXCLUDED, f"a rule in {file} names it")
        is_generated = self._generated.match_file(path.name.lower())
        return _Verdict(Reason.GENERATED, GENERATED_NAME) if is_generated else None

    def _ignored_by(self, root: Path, parts: Sequence[str]) -> str:
        """Return the name of the ignore file that excludes a path, or an empty string.

        As in git, the innermost file with a matching rule decides, but no rule re-includes a file in an
        ignored folder.
        """
        folders = [root.joinpath(*parts[:depth]) for depth in range(len(parts))]
        rules = [self._rules_of(folder) for folder in folders]
        for depth in range(1, len(parts) + 1):
            decided = ""
            for above, (spec, files) in enumerate(rules[:depth]):
                name = "/".join(parts[above:depth]) + ("/" if depth < len(parts) else "")
                check = spec.check_file(name)
                if check.include is not None and check.index is not None:
                    decided = files[check.index] if check.include else ""
            if decided:
                return decided
        return ""

    def _rules_of(self, folder: Path) -> _Rules:
        now = self._clock()
        known = self._folders.get(folder)
        if known and now < known.looked_s + LOOK_AGAIN_S:
            return known.rules
        files = [folder / name for name in IGNORE_FILES]
        stamp = tuple(_stamp(file) for file in files)
        rules = known.rules if known and known.stamp == stamp else _read_rules(files, stamp)
        if len(self._folders) >= _MAX_NAMES:
            self._folders.clear()
        self._folders[folder] = _Ignored(now, stamp, rules)
        return rules


def by_content(lines: Sequence[str]) -> Reason | None:
    """Return ``GENERATED`` for text that says so, is minified or is binary. Checks the first lines only."""
    head = []
    size = 0
    for line in islice(lines, CHECKED_LINES):
        head.append(line[: min(CHECKED_LINE_CHARS, CHECKED_CHARS - size)])
        size += len(head[-1])
        if size >= CHECKED_CHARS:
            break
    text = "".join(head)
    controls = size - len(text.translate(_CONTROL))
    is_binary = "\0" in text or controls > max(8, size // 50)
    is_minified = size > 2000 and _is_minified(head)
    says_so = any(_SAYS_GENERATED.match(line[:400]) for line in head[:40])
    return Reason.GENERATED if is_binary or is_minified or says_so else None


def _is_minified(lines: Sequence[str]) -> bool:
    """Whether half of the lines of code are long, comments and the contents of literals not counted."""
    if not any(len(line) > _LONG_LINE for line in lines):
        return False
    code = [line for line in lines if line.strip() and not _COMMENT.match(line)]
    is_long = [len(line) > _LONG_LINE and len(_LITERAL.sub("", line)) > _LONG_LINE for line in code]
    return bool(code) and 2 * sum(is_long) >= len(code)


def _posix(path: PurePath) -> str:
    return path.as_posix().removeprefix(path.anchor.replace("\\", "/"))


def _stamp(file: Path) -> tuple[int, int]:
    """State of an ignore file: time of change and size. As in git, only a regular file counts."""
    try:
        status = file.lstat()
    except (OSError, ValueError):
        return (0, 0)
    return (status.st_mtime_ns, status.st_size) if stat.S_ISREG(status.st_mode) else (0, 0)


def _read_rules(files: Iterable[Path], stamp: Sequence[tuple[int, int]]) -> _Rules:
    lines: list[tuple[str, str]] = []
    for file, (mtime, _) in zip(files, stamp, strict=True):
        if mtime:
            try:
                with file.open("rb") as stream:
                    text = stream.read(_MAX_IGNORE_BYTES).decode("utf-8", "replace")
                lines += [(line, file.name) for line in text.splitlines()]
            except OSError:
                continue
    rules = [(tame, name) for line, name in lines if _compiles(tame := _tamed(line))]
    return _Rules(GitIgnoreSpec.from_lines(tame for tame, _ in rules), tuple(name for _, name in rules))


def _tamed(line: str) -> str:
    """Return a rule that cannot backtrack for long (ReDoS): one with many wildcards is widened."""
    parts = [part if part.count("*") <= 3 else part[: part.index("*")] + "*" for part in line.split("/")]
    deep = [at for at, part in enumerate(parts) if part == "**"]
    parts = parts[: deep[2] + 1] if len(deep) > 3 else parts
    tamed = "/".join(parts)
    return "" if line.startswith("!") and tamed != line else tamed


def _compiles(line: str) -> bool:
    try:
        GitIgnoreSpec.from_lines([line])
    except (ValueError, re.error):
        return False
    return True
