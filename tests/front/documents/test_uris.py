"""Paths of document URIs."""

import os
from pathlib import Path

import pytest

from fimserver.front.documents.uris import path_of


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///a/b%20c.py", "/a/b c.py"),
        ("file://host/a/b.py", "/a/b.py"),
        ("git:/a/.env?ref=HEAD", "/a/.env"),
        ("vscode-notebook-cell:/a/n.ipynb#W0", "/a/n.ipynb"),
        ("untitled:Untitled-1", None),
        ("file:///", None),
        ("file:///a%00b", None),
        ("", None),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="paths of POSIX")
def test_path_of_a_uri(uri, path):
    assert path_of(uri) == (None if path is None else Path(path))
