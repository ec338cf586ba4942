"""Excluded files neither get nor feed completions; secrets in other files are redacted."""

import random
import time
from pathlib import Path

import pytest

from fimserver.front.context.privacy import LOOK_AGAIN_S, Privacy, by_content
from fimserver.front.context.secrets import REDACTED, mask_secrets
from fimserver.reasons import Reason

CODE = ["def area(r):\n", "    return 3 * r * r\n"]


class Clock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.mark.parametrize(
    "name",
    [
        ".env", ".env.local", ".env.example", ".ENV", "prod.env", ".envrc", "server.pem", "tls.key", "me.p12", "old.pfx",
        "vault.kdbx", "store.jks", "mail.asc", "id_rsa", "id_ed25519", "id_rsa.pub", "id_work", ".netrc", ".npmrc", ".pypirc",
        ".git-credentials", "credentials", "credentials.json", "secrets.yaml", "secrets.toml", "app-secrets.yaml", "x.tfstate",
        "x.tfstate.backup", "prod.tfvars", ".aws/config", "home/.ssh/known_hosts", ".gnupg/trustdb", "kubeconfig", ".kube/config",
        "service-account-key.json", ".pgpass", ".htpasswd", ".docker/config.json", "secrets/db.txt", "credentials.sh", ".bash_history",
        "release.keystore", ".env.d/settings.py",
    ],
)  # fmt: skip
def test_names_of_secrets_are_excluded(tmp_path, name):
    assert Privacy([tmp_path]).verdict(tmp_path / name, CODE) is Reason.EXCLUDED


@pytest.mark.parametrize(
    "name",
    [
        "id_generator.py", "test_credentials.py", "credentials.go", "secrets.py", "secrets/store.rs", "environment.py",
        "env.d.ts", "keyboard.py", "monkey.py", "main.rs", "README.md", "pyproject.toml", "config.yaml", "token.py", "mapper.ts",
    ],
)  # fmt: skip
def test_source_is_no_secret_by_its_name_alone(tmp_path, name):
    assert Privacy([tmp_path]).verdict(tmp_path / name, CODE) is None


def test_a_workspace_below_a_folder_with_a_telling_name_is_completed(tmp_path):
    root = tmp_path / "credentials" / "id_service"
    assert Privacy([root]).verdict(root / "main.py", CODE) is None
    assert Privacy([root]).verdict(root / "notes.txt", CODE) is None


@pytest.mark.parametrize(
    ("rules", "name", "excluded"),
    [
        ({".gitignore": "*.log\n"}, "a/b.log", True),
        ({".gitignore": "*.log\n!keep.log\n"}, "keep.log", False),
        ({".gitignore": "build/\n"}, "build/a/b.py", True),
        (
            {".gitignore": "build/\n!build/a.py\n"},
            "build/a.py",
            True,
        ),  # nothing in an ignored folder comes back
        ({".gitignore": "/top.py\n"}, "sub/top.py", False),
        ({"sub/.gitignore": "/own.py\n"}, "sub/own.py", True),
        ({"sub/.gitignore": "/own.py\n"}, "own.py", False),
        ({".gitignore": "*.gen\n", "sub/.gitignore": "!*.gen\n"}, "sub/a.gen", False),
        ({".fimignore": "private/**\n"}, "private/x.py", True),
        ({".gitignore": "x.py\n", ".fimignore": "!x.py\n"}, "x.py", False),
        (
            {".gitignore": "# x.py\n\n!\n[z-a]\n\\\ny.py\n"},
            "y.py",
            True,
        ),  # rules that make no sense do no harm
        ({".gitignore": "a*a*a*a*a*b\n"}, "a" * 200, True),  # widened, so that it cannot be slow
        ({".gitignore": "**/a/**/a/**/a/**/a/**/a/**/b\n"}, "a/" * 40 + "c", True),
    ],
)
def test_ignore_files_are_read_as_git_does(tmp_path, rules, name, excluded):
    for path, text in rules.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    assert (Privacy([tmp_path]).by_name(tmp_path / name) is Reason.EXCLUDED) is excluded


def test_a_change_of_an_ignore_file_is_seen_after_a_while(tmp_path):
    clock = Clock()
    privacy = Privacy([tmp_path], clock=clock)
    assert privacy.by_name(tmp_path / "a.py") is None
    (tmp_path / ".gitignore").write_text("a.py\n")
    assert privacy.by_name(tmp_path / "a.py") is None  # nobody looks at the disk on every key
    clock.now_s += LOOK_AGAIN_S
    assert privacy.by_name(tmp_path / "a.py") is Reason.EXCLUDED


def test_an_ignore_file_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "outside").write_text("*\n")
    root = tmp_path / "root"
    root.mkdir()
    (root / ".gitignore").symlink_to(tmp_path / "outside")
    assert Privacy([root]).by_name(root / "a.py") is None


def test_a_link_is_judged_by_its_target_too(tmp_path):
    (tmp_path / ".env").write_text("A=1\n")
    (tmp_path / "config.py").symlink_to(tmp_path / ".env")
    assert Privacy([tmp_path]).by_name(tmp_path / "config.py") is Reason.EXCLUDED


@pytest.mark.parametrize(
    ("glob", "name"),
    [("*.sql", "a/b.sql"), ("/vendor/", "vendor/x.py"), ("~/private/**", str(Path.home() / "private/x.py"))],
)
def test_globs_of_the_user_exclude(tmp_path, glob, name):
    assert Privacy([tmp_path], [glob]).by_name(tmp_path / name) is Reason.EXCLUDED
    assert Privacy([tmp_path]).by_name(tmp_path / name) is None


@pytest.mark.parametrize(
    "name",
    ["x.min.js", "Cargo.lock", "package-lock.json", "pnpm-lock.yaml", "a.js.map", "m_pb2.py", "m.pb.go"],
)
def test_names_of_generated_files(tmp_path, name):
    assert Privacy([tmp_path]).verdict(tmp_path / name, CODE) is Reason.GENERATED


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["// Code generated by protoc-gen-go. DO NOT EDIT.\n"], Reason.GENERATED),
        (["/**\n", " * @generated SignedSource<<x>>\n"], Reason.GENERATED),
        (["# This file is generated by tool, do not edit\n"], Reason.GENERATED),
        (["// <auto-generated>\n"], Reason.GENERATED),
        (["# Autogenerated by Thrift\n"], Reason.GENERATED),
        (["MARK = '@generated'\n"], None),
        (["# ids are generated lazily\n"], None),
        (["# Do not edit the cache while it is warm\n"], None),
        ([f"var a={'x' * 3000};\n"], Reason.GENERATED),
        (["/*! Library v1 */\n", f"!function(){{{'var a=1;' * 400}}}();\n"], Reason.GENERATED),
        (
            ["/**\n", " * Licence\n", " */\n", f"{'a(1);' * 500}\n", "//# sourceMappingURL=a.map\n"],
            Reason.GENERATED,
        ),
        ([f"{'a,' * 600}\n"] * 3, Reason.GENERATED),
        ([f"{{{', '.join(f'{i}: [{i}]' for i in range(500))}}}"], Reason.GENERATED),
        ([f"ICON = '{'x' * 3000}'\n", "\n", "\n", "def f():\n", "    \n"], None),
        ([f'const ICON = "{"x" * 3000}";\n'], None),
        ([f"const svg = `<path d=\\`{'M1 2 ' * 900}\\``;\n", "export default svg;\n"], None),
        ([f"DATA = [{'1, ' * 1500}]\n", "\n", "def f():\n", "    return DATA\n", "\n"], None),
        ([f"ICON = b'{'A' * 40_000}'\n", "def f():\n"], None),
        (["x" * 79 + "\n"] * 500, None),
        ([f"T = [{'12, ' * 30_000}]\n", "\n", "def area(width, height):\n", "    return \n"], None),
        ([f"const D = {{{'a: [1, 2], ' * 9000}}};\n", "function f(a) {\n", "  return \n", "}\n"], None),
        ([f"ICON = '{'x9Ab' * 60_000}'\n", "x = \n"], None),
        ([f"![a](data:image/png;base64,{'x9Ab' * 9000})\n", "Text\n"], None),
        ([f"!function(e,t){{{'var a=b(c);d&&e(f,g);' * 3000}}}\n"], Reason.GENERATED),
        (["a\0b\n"], Reason.GENERATED),
        (["\x01\x02\x03\x04\x05" * 30], Reason.GENERATED),
        (["page one\f\n", "\x1b[31mred\n"], None),
        ([""], None),
    ],
)
def test_content_tells_what_is_generated(lines, reason):
    assert by_content(lines) is reason


def test_untitled_documents_are_allowed(tmp_path):
    assert Privacy([tmp_path]).verdict(None, ["x\0"]) is None


def test_the_model_sees_no_path_outside_of_the_workspace(tmp_path):
    privacy = Privacy([tmp_path, tmp_path / "inner"])
    assert privacy.shown(tmp_path / "a" / "b.py") == "a/b.py"
    assert privacy.shown(tmp_path / "inner" / "b.py") == "b.py"
    assert privacy.shown(Path("/home/somebody/b.py")) == "b.py"


SECRETS = [
    "AKIA" + "IOSFODNN7EXAMPLE", "ghp_" + "16C7e42F292c6912E7710c838347Ae178B4a", "sk-" + "proj-abc123def456ghi789jkl0",
    "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0In0.abc_def-123", "xoxb-" + "12345-67890-abcdef", "glpat-" + "x1y2z3x1y2z3x1y2z3x1",
    "pB7/kQ2xV9nR4tW1zL8/" + "sD3fG6hJ0cY5mN+aE2uK", "a3f5c9e1b7d2048693af" + "5c9e1b7d20486", "xK9mP2vL8qR4nT7wZ3bF" + "6hJ1",
]  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS)
def test_tokens_and_random_strings_are_masked_in_their_place(secret):
    assert mask_secrets(f'client = Client("{secret}", 3)\n') == f'client = Client("{REDACTED}", 3)\n'


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ('password = "hunter2"', f'password = "{REDACTED}"'),
        ("config['api_key'] = 'abcdef'", f"config['api_key'] = '{REDACTED}'"),
        ('{"db_password": "correct horse"}', f'{{"db_password": "{REDACTED}"}}'),
        ('secret: str = "s3cret"', f'secret: str = "{REDACTED}"'),
        ("  password: hunter2 # dev", f"  password: {REDACTED} # dev"),
        ("export DB_PASSWORD=pa55word\n", f"export DB_PASSWORD={REDACTED}\n"),
        ("connect(token='abcd')", f"connect(token='{REDACTED}')"),
        ("postgres://me:pa55@db:5432/x", f"postgres://me:{REDACTED}@db:5432/x"),
        ("Authorization: Bearer abcdefghijklmnop1234", f"Authorization: Bearer {REDACTED}"),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nabc\n-----END RSA PRIVATE KEY-----\nx",
            f"-----BEGIN RSA PRIVATE KEY-----{REDACTED}-----END RSA PRIVATE KEY-----\nx",
        ),
    ],
)
def test_assigned_secrets_are_masked_and_their_role_stays(text, masked):
    assert mask_secrets(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "token = tokenizer.next_token(stream)",
        "max_tokens: 64",
        "password = os.environ['DB_PASSWORD']",
        'password = "${DB_PASSWORD}"',
        "def reset_password(user, new_password):",
        "token: str",
        "_mm512_extracti32x8_epi32(values, 0)",
        "getUserAccountSettingsByIdentifier2(x)",
        'import { AbstractSingletonProxyFactoryBean } from "./abstract-singleton-proxy-factory-bean"',
        'ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"',
        'sha256:"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"',
        "uses: actions/checkout@11bd71901bbe5b1630ceea73d27597364c9af683",
        "https://github.com/a/b/blob/4d229bf9f583d593aa103287aee0a77c9fbc3a79/src/main.py",
        "id: 123e4567-e89b-12d3-a456-426614174000x"[:4] + "1234567890123456789012345",
        "sk-folding-cube-animation",
    ],
)
def test_ordinary_code_stays(text):
    assert mask_secrets(text) == text


def test_masking_takes_linear_time():
    """Texts that could make regular expressions backtrack: 64 K characters take well under a second."""
    for piece in (
        "eyJ",
        "eyJaaaaaaaa.",
        "-----BEGIN A KEY-----",
        "password",
        "secret: a|",
        "://a:",
        "sk-1",
        "a/",
        '"',
        "=" * 30,
        "A1b",
    ):
        start = time.thread_time()  # of the processor: a busy machine takes none of it
        mask_secrets(piece * (70_000 // len(piece)))
        assert time.thread_time() - start < 2


def test_masking_twice_changes_nothing():
    rng = random.Random(5)
    for _ in range(50):
        text = "\n".join(
            f'{name} = "{rng.choice(SECRETS)}"' for name in rng.choices(["key", "password", "x"], k=6)
        )
        assert mask_secrets(mask_secrets(text)) == mask_secrets(text)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (".env", "secrets"),
        ("credentials.json", "secrets"),
        ("notes/a.txt", "setting exclude"),
        ("build/a.py", ".gitignore"),
        ("private.py", ".fimignore"),
        ("deep/local.py", ".gitignore"),
        ("deep/kept.py", ""),
        ("work.py", ""),
    ],
)
def test_the_list_or_file_that_excludes_is_named(name, why, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / ".gitignore").write_text("build/\n(((\nkept.py\n")
    (tmp_path / ".fimignore").write_text("# ours\nprivate.py\n!deep/kept.py\n")
    (tmp_path / "deep/.gitignore").write_text("local.py\n")
    privacy = Privacy([tmp_path], ["notes/*"])
    said = privacy.why(tmp_path / name)
    assert why in said
    assert bool(said) is bool(why)
