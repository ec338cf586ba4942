"""Requests of other clients over a real connection, and the fields of the answer that they read.

The bodies are what the plugins send, built after their sources; the versions are named beside each.
"""

import json
import socket

import httpx2
import pytest

from fimserver.cards import read_cards
from fimserver.errors import InputError, ModelMissingError
from fimserver.host.http.dialects import READERS, InfillBody
from fimserver.host.http.responses import Stamp, indented, openai
from fimserver.reasons import Reason
from fimserver.types import Prefill, PromptUse, Snippet
from fimserver.wire import MAX_STOPS, CompletionBody, CompletionChunk, EditorHints, Usage
from tests.hosts import ScriptedHost, until

PATIENCE_S = 60.0  # nano shares its processor
TOKEN = "secret"  # noqa: S105 - of a host that lives as long as a test

# ggml-org/llama.vim, autoload/llama.vim of 2026-01-31: the request at the cursor, and the one that warms up.
LLAMA_VIM_FIELDS = [
    "content",
    "timings/prompt_n",
    "timings/prompt_ms",
    "timings/prompt_per_token_ms",
    "timings/prompt_per_second",
    "timings/predicted_n",
    "timings/predicted_ms",
    "timings/predicted_per_token_ms",
    "timings/predicted_per_second",
    "truncated",
    "tokens_cached",
]
CHUNK = {"text": "class Cart:\n    pass\n", "time": [1763, 204], "filename": "cart.py"}
LLAMA_VIM = {
    "id_slot": 0,
    "input_prefix": "import cart\n",
    "input_suffix": "\nadd(1, 2)\n\n",
    "input_extra": [CHUNK],
    "prompt": "def add(a, b):",
    "n_predict": 128,
    "stop": [],
    "n_indent": 0,
    "top_k": 40,
    "top_p": 0.9,
    "samplers": ["top_k", "top_p", "infill"],
    "stream": False,
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 250,
    "response_fields": LLAMA_VIM_FIELDS,
    "model": "",
}
LLAMA_VIM_WARMS = {
    "id_slot": 0,
    "input_prefix": "",
    "input_suffix": "",
    "input_extra": [CHUNK],
    "prompt": "",
    "n_predict": 0,
    "temperature": 0.0,
    "stream": False,
    "samplers": [],
    "cache_prompt": True,
    "t_max_prompt_ms": 1,
    "t_max_predict_ms": 1,
    "response_fields": [""],
    "model": "",
}
# ggml-org/llama.vscode, src/llama-server.ts, createRequestPayload with n_cmpl (0.0.63, 2026-08)
LLAMA_VSCODE = {
    "id_slot": 0,
    "input_prefix": "import cart\n",
    "input_suffix": "\n",
    "input_extra": [CHUNK],
    "prompt": "def add(a, b):",
    "n_predict": 128,
    "n_cmpl": 3,
    "top_k": 40,
    "top_p": 0.99,
    "stream": False,
    "samplers": ["top_k", "top_p", "infill"],
    "cache_prompt": True,
    "n_indent": 4,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 500,
    "lora": [{"id": 0, "scale": 0.5}],
}
# milanglacier/minuet-ai.nvim, lua/minuet/backends/openai_base.lua (06fc942), provider openai_fim_compatible
MINUET = {
    "model": "auto",
    "stream": True,
    "max_tokens": 56,
    "top_p": 0.9,
    "prompt": "def add(a, b):",
    "suffix": "\nadd(1, 2)\n",
}
# the same plugin, lua/minuet/backends/codestral.lua (0582bd0)
MINUET_CODESTRAL = MINUET | {"stop": ["\n\n"]}
# continuedev/continue, core/llm/llms/OpenAI.ts (0069b94): fim/completions of the provider openai
CONTINUE = {
    "model": "auto",
    "prompt": "def add(a, b):",
    "suffix": "\nadd(1, 2)\n",
    "max_tokens": 256,
    "temperature": 0.01,
    "stop": [
        "<fim_prefix>",
        "<fim_suffix>",
        "<fim_middle>",
        "<file_sep>",
        "\n\n",
        "\r\n\r\n",
        "/src/",
        "#- coding: utf-8",
        "```",
    ],
    "stream": True,
}
# the same plugin, core/llm/llms/Inception.ts (as stored at 19a721f): where nothing follows
CONTINUE_INCEPTION = CONTINUE | {"suffix": "<|endoftext|>", "presence_penalty": 1.5}
# zed-industries/zed, crates/edit_prediction/src/fim.rs (09512d2) and open_ai_compatible.rs (7c27500)
ZED = {
    "model": "auto",
    "prompt": "<|fim_prefix|>def add(a, b):<|fim_suffix|>\nadd(1, 2)\n<|fim_middle|>",
    "max_tokens": 64,
    "stop": ["<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"],
}
# cursortab/cursortab.nvim, server/provider/fim/fim.go and server/client/openai/openai.go (14f7163)
CURSORTAB = {
    "model": "auto",
    "prompt": "<|repo_name|>shop\n<|file_sep|>cart.py\nclass Cart:\n    pass\n<|file_sep|>main.py\n"
    "<|fim_prefix|>def add(a, b):<|fim_suffix|>\nadd(1, 2)\n<|fim_middle|>",
    "temperature": 0,
    "max_tokens": 512,
    "stop": ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_sep|>"],
    "n": 1,
    "echo": False,
    "stream": True,
}


class Client(httpx2.Client):
    def __init__(self, host, **headers):
        super().__init__(base_url=host.url, headers=headers, trust_env=False, timeout=PATIENCE_S)

    def asks(self, path, body, status=200):
        response = self.post(path, json=body)
        assert response.status_code == status, response.text
        return response.json()

    def streams(self, path, body):
        """The data of each event, read as text."""
        with self.stream("POST", path, json=body | {"stream": True}) as response:
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = [line for line in response.iter_lines() if line]
        assert all(line.startswith("data: ") for line in lines)
        return [line.removeprefix("data: ") for line in lines]


@pytest.fixture
def client(host):
    with Client(host) as client:
        yield client


def read(path, **fields):
    return READERS[path](json.dumps(fields).encode())[0]


@pytest.mark.parametrize(
    ("path", "body", "asked"),
    [
        (
            "/infill",
            LLAMA_VIM,
            ("import cart\ndef add(a, b):", "\nadd(1, 2)\n\n", "", "", (Snippet("cart.py", CHUNK["text"]),)),
        ),
        (
            "/infill",
            LLAMA_VSCODE,
            ("import cart\ndef add(a, b):", "\n", "", "", (Snippet("cart.py", CHUNK["text"]),)),
        ),
        ("/v1/completions", MINUET, ("def add(a, b):", "\nadd(1, 2)\n", "", "", ())),
        ("/v1/fim/completions", MINUET_CODESTRAL, ("def add(a, b):", "\nadd(1, 2)\n", "", "", ())),
        ("/fim/completions", CONTINUE, ("def add(a, b):", "\nadd(1, 2)\n", "", "", ())),
        ("/v1/fim/completions", CONTINUE, ("def add(a, b):", "\nadd(1, 2)\n", "", "", ())),
        ("/v1/fim/completions", CONTINUE_INCEPTION, ("def add(a, b):", "", "", "", ())),
        ("/v1/completions", CONTINUE_INCEPTION, ("def add(a, b):", "", "", "", ())),
        ("/v1/completions", ZED, ("def add(a, b):", "\nadd(1, 2)\n", "", "", ())),
        (
            "/fim/completions",
            CONTINUE | {"prompt": ZED["prompt"], "suffix": ""},
            ("def add(a, b):", "\nadd(1, 2)\n", "", "", ()),
        ),
        (
            "/v1/completions",
            CURSORTAB,
            ("def add(a, b):", "\nadd(1, 2)\n", "main.py", "shop", (Snippet("cart.py", CHUNK["text"]),)),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_plugins_send_reaches_the_engine(host, client, path, body, asked):
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    got = host.engines.asked[0]
    assert (got.prefix, got.suffix, got.path, got.repo, got.snippets) == asked


def test_llama_vim_gets_flat_keys_and_only_those_that_are_known(host, client):
    response = client.post("/infill", json=LLAMA_VIM)
    assert b'"content":"xy"' in response.content  # it looks for this text before it parses
    answer = response.json()
    assert answer["content"] == "xy"
    assert set(answer) == set(LLAMA_VIM_FIELDS) - {
        "truncated",
        "tokens_cached",
    }  # which nothing here measures
    assert (answer["timings/prompt_n"], answer["timings/predicted_n"]) == (0, 2)


def test_llama_vim_warms_the_cache_and_gets_nothing(host, client):
    assert client.asks("/infill", LLAMA_VIM_WARMS) == {}
    assert [warmed.snippets for warmed in host.engines.warmed] == [(Snippet("cart.py", CHUNK["text"]),)]
    assert not host.engines.asked


def test_llama_vscode_gets_a_list_of_choices(host, client):
    answer = client.asks("/infill", LLAMA_VSCODE)
    assert [choice["content"] for choice in answer] == ["xy"] * 3
    assert [choice["index"] for choice in answer] == [0, 1, 2]


def test_rows_that_only_fill_a_pass_are_no_tokens_of_the_prompt():
    usage = Usage(reason=Reason.END, tokens=1, prefill=Prefill(64, 1, 9.0), prompt=PromptUse(6, 448))
    chunk = CompletionChunk(index=0, text="x", usage=usage)
    assert openai().whole([chunk], Stamp("cmpl-1", 0), 1)["usage"]["prompt_tokens"] == 6
    partly_cached = usage.model_copy(update={"prefill": Prefill(4, 1, 9.0)})
    chunk = CompletionChunk(index=0, text="x", usage=partly_cached)
    assert openai().whole([chunk], Stamp("cmpl-1", 0), 1)["usage"]["prompt_tokens"] == 4


def test_an_answer_of_infill(host, client):
    answer = client.asks("/infill", {"input_prefix": "a", "input_suffix": "b"})
    usage = answer["fimserver"]
    assert (answer["content"], answer["stop"], answer["stop_type"], answer["model"]) == (
        "xy",
        True,
        "eos",
        "fake",
    )
    assert (answer["tokens_predicted"], answer["index"]) == (2, 0)
    timings = answer["timings"]
    assert (timings["prompt_n"], timings["prompt_ms"]) == (usage["prefill"][0], usage["prefill"][2])
    assert timings["predicted_n"] == usage["tokens"]
    assert timings["predicted_ms"] == pytest.approx(usage["total_ms"] - usage["prefill"][2])
    assert timings["predicted_per_second"] == pytest.approx(2000 / timings["predicted_ms"])
    assert not set(answer) & {"tokens_cached", "tokens_evaluated", "truncated"}


def test_a_stream_of_infill(host, client):
    events = [json.loads(event) for event in client.streams("/infill", {"input_prefix": "a"})]
    assert "".join(event["content"] for event in events) == "xy"
    assert [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1]["timings"]["predicted_n"] == 2


@pytest.mark.parametrize("path", ["/v1/fim/completions", "/fim/completions"])
def test_an_answer_of_mistral_is_a_message_and_a_text(host, client, path):
    answer = client.asks(path, {"prompt": "a", "suffix": "b"})
    (choice,) = answer["choices"]
    assert choice == {
        "index": 0,
        "text": "xy",
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": "xy"},
    }
    assert answer["usage"] == {"prompt_tokens": 0, "completion_tokens": 2, "total_tokens": 2}


def test_a_stream_of_mistral_has_a_delta_in_every_event(host, client):
    *events, last = client.streams("/v1/fim/completions", CONTINUE)
    assert last == "[DONE]"
    choices = [json.loads(event)["choices"][0] for event in events]
    assert "".join(choice["delta"]["content"] for choice in choices) == "xy"
    assert [choice["text"] for choice in choices] == [choice["delta"]["content"] for choice in choices]
    assert choices[-1]["finish_reason"] == "stop"


def test_zed_finds_every_field_that_it_cannot_do_without(host, client):
    """RawCompletionResponse of crates/cloud_llm_client has no optional field but finish_reason."""
    answer = client.asks("/v1/completions", ZED)
    kinds = {"id": str, "object": str, "created": int, "model": str, "choices": list, "usage": dict}
    assert {name: type(answer[name]) for name in kinds} == kinds
    assert all(
        type(answer["usage"][n]) is int for n in ("prompt_tokens", "completion_tokens", "total_tokens")
    )
    assert answer["choices"][0]["text"] == "xy"


def test_real_numbers_of_a_real_model(nano_models):
    for route in ("ar", "dllm"):
        nano_models.engine(route)  # a busy machine imports and loads for longer than a client waits
    with ScriptedHost(lambda: nano_models) as host, Client(host) as client:
        body = {"input_prefix": "def add(a, b):\n    return ", "input_suffix": "\n", "n_predict": 8}
        cold, warm = client.asks("/infill", body), client.asks("/infill", body)
        for answer in (cold, warm):
            assert answer["timings"]["prompt_n"] > 0
            assert answer["timings"]["prompt_ms"] > 0
        assert cold["content"] == warm["content"]
        raw = {"prompt": "<fim_prefix>def add(a, b):\n    return <fim_suffix>\n<fim_middle>", "max_tokens": 8}
        for route in ("ar", "dllm"):
            plain = {"prompt": body["input_prefix"], "suffix": "\n", "max_tokens": 8}
            texts = [
                client.asks("/v1/completions", asked | {"model": route})["choices"][0]["text"]
                for asked in (raw, plain)
            ]
            assert texts[0] == texts[1]
        props = client.get("/props").json()
        card = read_cards()["nano"]
        assert props["default_generation_settings"]["n_ctx"] == card.prompt_tokens + card.max_new_tokens
        assert (props["total_slots"], props["model_alias"]) == (1, "nano")


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ZED["prompt"], "suffix": "s"},
        {"prompt": ZED["prompt"], "suffix": "", "fimserver": {"document": "d"}},
        {"prompt": "TOKENS = ['<|fim_prefix|>', '<|fim_suffix|>', '<|fim_middle|>"},
        {"prompt": "x = '<fim_middle>'", "suffix": "<fim_suffix>"},
    ],
)
def test_the_text_of_a_file_is_never_torn(fields):
    assert read("/v1/completions", **fields) == CompletionBody.model_validate(fields)


def test_a_raw_prompt_leaves_the_rest_of_a_request():
    got = read("/v1/completions", **ZED, fimserver={"route": "dllm", "path": "mine.py"})
    assert (got.prompt, got.suffix, got.max_tokens, got.stops) == (
        "def add(a, b):",
        "\nadd(1, 2)\n",
        64,
        tuple(ZED["stop"]),
    )
    assert got.fimserver == EditorHints(route="dllm", path="mine.py")


def test_too_many_files_of_a_raw_prompt_lose_the_farthest():
    files = "".join(f"<|file_sep|>{i}.py\n{i}\n" for i in range(70))
    got = read("/v1/completions", prompt=files + "<|file_sep|>m.py\n" + ZED["prompt"])
    assert [snippet.path for snippet in got.fimserver.snippets] == [f"{i}.py" for i in range(6, 70)]


@pytest.mark.parametrize(
    ("fields", "deadline_ms"),
    [
        ({}, None),
        ({"t_max_predict_ms": 250}, 250),
        ({"t_max_prompt_ms": 500, "t_max_predict_ms": 250}, 750),
        ({"t_max_prompt_ms": 500}, None),
        ({"t_max_prompt_ms": -1, "t_max_predict_ms": -1}, None),
        ({"t_max_prompt_ms": 0, "t_max_predict_ms": 0}, None),
        ({"t_max_prompt_ms": 1, "t_max_predict_ms": 1, "n_predict": 0}, None),
        ({"t_max_prompt_ms": 120_000, "t_max_predict_ms": 120_000}, 120_000),
    ],
)
def test_the_deadline_of_infill(fields, deadline_ms):
    assert InfillBody(**fields).deadline_ms == deadline_ms
    assert read("/infill", **fields).fimserver.deadline_ms == deadline_ms


@pytest.mark.parametrize(
    ("path", "sent", "became"),
    [
        ("/infill", {}, {"max_tokens": None, "temperature": None, "seed": None, "n": 1, "model": "auto"}),
        (
            "/infill",
            {"n_predict": 7, "seed": 3, "temperature": 0.5},
            {"max_tokens": 7, "seed": 3, "temperature": 0.5},
        ),
        ("/infill", {"n_predict": -1, "seed": -1}, {"max_tokens": None, "seed": None}),
        ("/infill", {"top_k": 1, "temperature": 0.5}, {"temperature": 0.0}),
        (
            "/infill",
            {"stop": ["\n"], "n_cmpl": 2, "model": "dllm"},
            {"stops": ("\n",), "n": 2, "model": "dllm"},
        ),
        ("/fim/completions", {"prompt": "", "random_seed": 5}, {"seed": 5}),
        ("/fim/completions", {"prompt": "", "seed": 6}, {"seed": 6}),
    ],
)
def test_what_fields_become(path, sent, became):
    got = read(path, **sent)
    assert {name: getattr(got, name) for name in became} == became


@pytest.mark.parametrize(
    "field", ["n_predict", "n_indent", "n_cmpl", "top_k", "t_max_prompt_ms", "t_max_predict_ms"]
)
def test_a_field_outside_its_range_is_refused_by_name(host, client, field):
    error = client.asks("/infill", {"input_prefix": "canary", field: -2}, 400)["error"]
    assert error["message"].startswith(f"{field}: ")
    assert (error["type"], error["code"]) == ("invalid_request_error", 400)
    assert "canary" not in error["message"]
    assert not host.engines.asked


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [
        ("/infill", {"input_prefix": 1}, "input_prefix"),
        ("/infill", {"input_extra": [{"filename": "x"}]}, "input_extra.0.text"),
        ("/infill", {"temperature": 3}, "temperature"),
        ("/infill", {"top_p": -1}, "top_p"),
        ("/infill", {"stop": ["x"] * (MAX_STOPS + 1)}, "stop"),
        ("/infill", {"response_fields": "content"}, "response_fields"),
        ("/infill", {"model": "gpt-4"}, "model"),
        ("/fim/completions", {}, "prompt"),
        ("/fim/completions", {"prompt": "a", "random_seed": "x"}, "random_seed"),
        ("/v1/fim/completions", {"prompt": "a", "max_tokens": -2}, "max_tokens"),
    ],
)
def test_a_bad_body_is_refused_by_field(host, client, path, fields, named):
    message = client.asks(path, fields, 400)["error"]["message"]
    assert message.split(":")[0].split(" ")[0].startswith(named)
    assert not host.engines.asked


def test_a_body_that_is_no_json_is_refused():
    for reader in READERS.values():
        with pytest.raises(InputError, match="body"):
            reader(b"{")


@pytest.mark.parametrize(
    ("text", "least", "kept"),
    [
        ("a\n    b\nc", 4, "a\n    b"),
        ("a\n\tb\n\nc", 1, "a\n\tb\n"),
        ("a\nb", 0, "a\nb"),
        ("a\n\n    b", 4, "a\n\n    b"),
        ("", 4, ""),
    ],
)
def test_an_answer_ends_before_the_first_line_that_is_indented_too_little(text, least, kept):
    assert indented(text, least) == kept


def test_the_indentation_that_a_client_asks_for_is_kept(host, client):
    host.says("x\n    y\nz")
    assert client.asks("/infill", {"n_indent": 4})["content"] == "x\n    y"


def test_a_failure_is_an_empty_answer_that_says_why(host, client):
    host.says(ValueError("canary"))
    answer = client.asks("/infill", LLAMA_VSCODE | {"n_cmpl": 1})
    assert (answer["content"], answer["fimserver"]["reason"]) == ("", "failed")
    assert answer["error"]["message"]
    assert "canary" not in json.dumps(answer)


def test_clients_with_the_same_slot_do_not_push_each_other_out(host):
    """llama.vim sends slot 0 for everybody."""
    free, begun = [], []

    def script(_request, _route):
        begun.append(True)
        while not free:
            yield 0.005
        yield "x"

    host.engines.script = script
    bodies = [json.dumps(LLAMA_VIM | {"t_max_predict_ms": 60_000}).encode() for _ in range(2)]
    lines = []
    for body in bodies:
        line = socket.create_connection(("127.0.0.1", int(host.url.rsplit(":", 1)[1])), PATIENCE_S)
        line.sendall(
            b"POST /infill HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        lines.append(line)
    until(lambda: host.scheduler.depth == (1, 1))
    free.append(True)
    for line in lines:
        with line, line.makefile("rb") as answer:
            head = dict(
                part.split(b": ") for part in iter(lambda: answer.readline().strip(), b"") if b": " in part
            )
            assert b'"content":"x"' in answer.read(int(head[b"content-length"]))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/infill", "/fim/completions"])
def test_hanging_up_stops_the_engine(host, path, stream):
    def plods(_request, _route):
        for _ in range(20_000):
            yield "x"
            yield 0.005

    host.engines.script = plods
    body = json.dumps({"prompt": "dropped", "stream": stream}).encode()
    with socket.create_connection(("127.0.0.1", int(host.url.rsplit(":", 1)[1])), PATIENCE_S) as line:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        line.sendall(head + body)
        until(lambda: host.engines.asked)
    until(lambda: host.engines.stopped)
    assert host.engines.stopped[0][0] == "cancelled"


def test_props_while_nothing_can_run():
    def load():
        raise ModelMissingError("run fimserver models get x")

    with ScriptedHost(load) as host, Client(host) as client:
        until(lambda: client.get("/health").json()["status"] == "no_model")
        response = client.get("/props")
        assert response.status_code == 503
        assert response.json()["error"] == {
            "message": "run fimserver models get x",
            "type": "unavailable_error",
            "code": 503,
        }


def test_props_of_a_model_without_a_card_has_no_length(client):
    assert "default_generation_settings" not in client.get("/props").json()


@pytest.mark.parametrize("path", ["/infill", "/fim/completions", "/v1/fim/completions", "/props"])
def test_over_tcp_only_who_has_the_token_is_served(path):
    with ScriptedHost(token=TOKEN, allowed_hosts=frozenset({"127.0.0.1"})) as host, Client(host) as client:
        host.says("x")

        def status(**headers):
            verb, content = ("GET", None) if path == "/props" else ("POST", b'{"prompt": "a"}')
            return client.request(verb, path, headers=headers, content=content).status_code

        right = {"Authorization": f"Bearer {TOKEN}"}
        until(lambda: host.scheduler.state is None)
        assert status() == 401
        assert status(Authorization="Bearer wrong") == 401
        assert status(**right, Origin="http://evil.example") == 403
        assert status(**right, Host="evil.example") == 403
        assert status(**right) == 200
