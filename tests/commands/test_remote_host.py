"""Messages of the command line about remote servers that are not fimserver hosts, and about one that is."""

import http.server
import json
import threading

import pytest
from click.testing import CliRunner

from fimserver.cli import main
from fimserver.commands.remote_host import RemoteHost
from fimserver.errors import FimError, InputError
from tests.hosts import ScriptedHost, free_port

VLLM = {
    "/health": (200, b""),
    "/v1/models": (200, {"data": [{"id": "Qwen/Qwen2.5-Coder-7B", "owned_by": "vllm"}]}),
}
LLAMA_CPP = {
    "/health": (200, {"status": "ok"}),
    "/v1/models": (200, {"data": [{"id": "coder.gguf", "owned_by": "llamacpp"}]}),
}
OLLAMA = {"/v1/models": (200, {"data": [{"id": "qwen2.5-coder:1.5b", "owned_by": "library"}]})}
WEB = {"/health": (200, b"<html>"), "/v1/models": (200, b"<html>")}
ODD = {"/health": (200, [1, 2]), "/v1/models": (200, {"data": "none"})}
STILL_ODD = {"/health": (200, {"models": ["a"]}), "/v1/models": (500, b"")}
EMPTY: dict[str, tuple[int, object]] = {}


class Foreign:
    """A server that answers as it is told, and 404 to the rest."""

    def __init__(self, answers):
        self.posts = posts = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                status, body = answers.get(self.path, (404, b"not found"))
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_POST(self):
                posts.append(self.path)
                self.send_error(404)

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.mark.parametrize(
    ("answers", "named"),
    [
        (VLLM, "another server (vllm, model Qwen/Qwen2.5-Coder-7B)"),
        (LLAMA_CPP, "another server (llamacpp, model coder.gguf)"),
        (OLLAMA, "another server (library, model qwen2.5-coder:1.5b)"),
        (WEB, "is not a fimserver host"),
        (ODD, "is not a fimserver host"),
        (STILL_ODD, "is not a fimserver host"),
        (EMPTY, "is not a fimserver host"),
    ],
    ids=["vllm", "llama.cpp", "ollama", "web", "list", "models list", "404"],
)
class TestAnotherServer:
    def test_it_is_named_and_gets_no_text(self, answers, named):
        with Foreign(answers) as server:
            with pytest.raises(InputError) as caught:
                RemoteHost(server.url, "")
            assert named in str(caught.value)
            assert "run `fimserver serve` there" in str(caught.value)
            assert server.posts == []

    @pytest.mark.parametrize("verb", ["complete", "ab"])
    def test_on_the_command_line_it_is_one_line(self, answers, named, verb, tmp_path):
        spans = tmp_path / "spans.jsonl"
        spans.write_text('{"id": "one", "prefix": "x = ", "middle": "1", "suffix": "\\n"}\n')
        with Foreign(answers) as server:
            arguments = {
                "complete": ["complete", "--spans", spans, "--connect", server.url],
                "ab": [
                    "ab",
                    "--a",
                    server.url,
                    "--b",
                    server.url,
                    "--spans",
                    spans,
                    "--out",
                    tmp_path / "out",
                ],
            }[verb]
            result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
        if verb == "ab" and named.startswith("another server"):  # an engine here asks it in its dialect
            assert result.exit_code == 0
            return
        assert result.exit_code == 2
        assert named in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("url", ["http://[::1", "http://box:abc", "http://box:99999", "box", "http://"])
@pytest.mark.parametrize("verb", ["complete", "ab", "stats"])
def test_what_is_no_url_is_one_line(url, verb, tmp_path):
    spans = tmp_path / "spans.jsonl"
    spans.write_text('{"id": "one", "prefix": "x = ", "middle": "1", "suffix": "\\n"}\n')
    arguments = {
        "complete": ["complete", "--spans", spans, "--connect", url],
        "ab": ["ab", "--a", url, "--b", "ar", "--spans", spans, "--out", tmp_path / "out"],
        "stats": ["stats", "--connect", url],
    }[verb]
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1


def test_nobody_there_is_said():
    with pytest.raises(InputError, match="cannot be reached"):
        RemoteHost(f"http://127.0.0.1:{free_port()}", "")


def test_a_host_without_a_model_says_why():
    def load():
        raise FimError("get it first")

    with ScriptedHost(load) as host, pytest.raises(FimError, match="has no model to answer with"):
        RemoteHost(host.url, "")


def test_a_host_says_its_version_and_models():
    with ScriptedHost() as host:
        there = RemoteHost(host.url, "")
        there.close()
    assert there.models == {"dllm": "fake", "ar": "fake"}
    assert there.version
