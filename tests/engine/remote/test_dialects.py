"""Dialects against recorded exchanges of real servers; each names its source.

``run``: cut from the answers of a real server. ``docs``: after the server's own documentation, not run here.
"""

import pytest

from fimserver.cards import ELSEWHERE, Card, Remote
from fimserver.engine.remote.dialect import Dialect, Piece, ServerFacts
from fimserver.engine.remote.dialects import DIALECTS
from fimserver.engine.remote.engine import RemoteEngine
from fimserver.engine.remote.template import card_like, template_of
from fimserver.errors import NoFimError, WrongModelError
from fimserver.reasons import Reason
from fimserver.types import Deadline, Request, Sampling, Snippet
from tests.servers_elsewhere import PlayedServer, sse

CODER = "Qwen/Qwen2.5-Coder-7B"
REQUEST = Request(
    "def add(a, b):\n    return ",
    "\n",
    Sampling(max_tokens=16, stop="none"),
    path="calc.py",
    snippets=(Snippet("other.py", "x = 1"),),
)
RAW = (
    "<|repo_name|>workspace\n<|file_sep|>other.py\nx = 1\n<|file_sep|>calc.py\n"
    "<|fim_prefix|>def add(a, b):\n    return <|fim_suffix|>\n<|fim_middle|>"
)


def openai_stream(text="a + b", finish="stop"):
    choices = [{"index": 0, "text": text[:2], "finish_reason": None}]
    last = [{"index": 0, "text": text[2:], "finish_reason": finish}]
    usage = {"prompt_tokens": 40, "completion_tokens": 3}
    return [sse({"choices": choices}, {"choices": last}, {"choices": [], "usage": usage}, "[DONE]")]


def models(owner, **fields):
    return (200, {"object": "list", "data": [{"id": CODER, "object": "model", "owned_by": owner, **fields}]})


def fimserver_stream():
    usage = {"route": "ar", "model": "nano", "reason": "end", "tokens": 3, "forwards": 2}
    return [
        sse(
            {"choices": [{"index": 0, "text": "a + "}]},
            {"choices": [{"index": 0, "text": "b"}], "fimserver": usage},
            "[DONE]",
        )
    ]


# name, where it is from, answers, dialect, path that is asked, fields that are sent
EXCHANGES = [
    pytest.param(
        {"/v1/models": models("vllm", max_model_len=4096), "/v1/completions": openai_stream()},
        ("openai", "/v1/completions"),
        {"prompt": RAW, "model": CODER, "skip_special_tokens": False, "max_tokens": 16},
        id="vLLM, docs (OpenAI-compatible server, completions API)",
    ),
    pytest.param(
        {"/v1/models": models("sglang", max_model_len=32768), "/v1/completions": openai_stream()},
        ("openai", "/v1/completions"),
        {"prompt": RAW, "skip_special_tokens": False},
        id="SGLang, docs (OpenAI APIs, completions)",
    ),
    pytest.param(
        {
            "/v1/models": models("organization_owner"),
            "/api/v0/models": (
                200,
                {"data": [{"id": CODER, "state": "loaded", "loaded_context_length": 4096}]},
            ),
            "/v1/completions": openai_stream(),
        },
        ("openai", "/v1/completions"),
        {"prompt": RAW},
        id="LM Studio, docs (REST API v0)",
    ),
    pytest.param(
        {
            "/api/tags": (200, {"models": [{"name": "qwen2.5-coder:7b"}, {"name": "llama3.2:latest"}]}),
            "/api/version": (200, {"version": "0.12.0"}),
            "/api/generate": [
                '{"model":"qwen2.5-coder:7b","response":"a +","done":false}\n',
                '{"model":"qwen2.5-coder:7b","response":" b","done":false}\n',
                '{"response":"","done":true,"done_reason":"stop","eval_count":3,"prompt_eval_count":40}\n',
            ],
        },
        ("ollama", "/api/generate"),
        {"model": "qwen2.5-coder:7b", "prompt": REQUEST.prefix, "suffix": "\n", "stream": True},
        id="Ollama, docs (API, generate with suffix)",
    ),
    pytest.param(
        {
            "/v1/models": (
                200,
                {"data": [{"id": "codestral-latest", "capabilities": {"completion_fim": True}}]},
            ),
            "/v1/fim/completions": [
                sse(
                    {"choices": [{"index": 0, "delta": {"content": "a +"}, "finish_reason": None}]},
                    {
                        "choices": [{"index": 0, "delta": {"content": " b"}, "finish_reason": "stop"}],
                        "usage": {"prompt_tokens": 40, "completion_tokens": 3},
                    },
                    "[DONE]",
                )
            ],
        },
        ("mistral", "/v1/fim/completions"),
        {"model": "codestral-latest", "prompt": REQUEST.prefix, "suffix": "\n", "random_seed": 0},
        id="Mistral, docs (API, FIM)",
    ),
    pytest.param(
        {
            "/props": (200, {"default_generation_settings": {"n_ctx": 1024}, "total_slots": 1}),
            "/v1/models": models("llamacpp"),
            "/infill": [
                sse(
                    {"index": 0, "content": "a +", "stop": False, "tokens_predicted": 2},
                    {"index": 0, "content": " b", "stop": False, "tokens_predicted": 3},
                    {"content": "", "stop": True, "stop_type": "eos", "tokens_predicted": 4},
                )
            ],
        },
        ("llama_cpp", "/infill"),
        {"input_suffix": "\n", "input_extra": [{"filename": "other.py", "text": "x = 1"}], "n_predict": 16},
        id="llama.cpp, run (xllamacpp 2026.10)",
    ),
    pytest.param(
        {
            "/health": (200, {"status": "ok", "version": "0.1.0", "models": {"ar": "nano", "dllm": "nano"}}),
            "/v1/completions": fimserver_stream(),
        },
        ("fimserver", "/v1/completions"),
        {"prompt": REQUEST.prefix, "suffix": "\n"},
        id="fimserver, run",
    ),
]


def engine_of(server, route="ar", **remote):
    return RemoteEngine(Card(name="elsewhere", remote=Remote(url=server.url, **remote), **ELSEWHERE), route)


@pytest.mark.parametrize(("answers", "asked", "sent"), EXCHANGES)
def test_an_exchange_gives_the_middle(answers, asked, sent):
    with PlayedServer(answers) as server:
        engine = engine_of(server)
        chunks = list(engine.complete(REQUEST, Deadline.of_ms(60_000)))
        assert "".join(chunk.text for chunk in chunks) == "a + b"
        assert chunks[-1].reason is Reason.END
        assert chunks[-1].tokens >= 2
        assert engine.server(Deadline()).dialect_name == asked[0]
        path, body, _headers = server.asked[-1]
        assert path == asked[1]
        assert {name: body[name] for name in sent} == sent


def test_the_diffusion_route_is_another_fimservers():
    answers = EXCHANGES[-1].values[0]
    with PlayedServer(answers) as server:
        assert (
            list(engine_of(server, "dllm").complete(REQUEST, Deadline.of_ms(60_000)))[-1].reason is Reason.END
        )
        assert server.asked[-1][1]["fimserver"]["route"] == "dllm"
    with (
        PlayedServer(EXCHANGES[1].values[0]) as server,
        pytest.raises(NoFimError, match="no diffusion route"),
    ):
        list(engine_of(server, "dllm").complete(REQUEST, Deadline.of_ms(60_000)))


def test_a_model_that_the_server_lacks_is_named_with_those_it_has():
    with PlayedServer(EXCHANGES[0].values[0]) as server, pytest.raises(WrongModelError, match=CODER):
        list(engine_of(server, model="starcoder2").complete(REQUEST, Deadline.of_ms(60_000)))


def test_a_model_without_known_markers_is_asked_with_suffix_only_where_the_card_says_so():
    answers = {"/v1/models": (200, {"data": [{"id": "my-tune"}]}), "/v1/completions": openai_stream()}
    with PlayedServer(answers) as server:
        with pytest.raises(NoFimError, match="my-tune"):
            list(engine_of(server).complete(REQUEST, Deadline.of_ms(60_000)))
        assert list(engine_of(server, suffix=True).complete(REQUEST, Deadline.of_ms(60_000)))
        assert server.asked[-1][1]["suffix"] == "\n"


def test_the_key_goes_into_the_header_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("BOX_KEY", "sesame")
    (tmp_path / "key").write_text("from-a-file\n")
    with PlayedServer(EXCHANGES[0].values[0]) as server:
        for card, key in (
            ({"key_env": "BOX_KEY"}, "sesame"),
            ({"key_file": str(tmp_path / "key")}, "from-a-file"),
        ):
            list(engine_of(server, **card).complete(REQUEST, Deadline.of_ms(60_000)))
            assert server.asked[-1][2]["authorization"] == f"Bearer {key}"
            assert key not in str(server.asked[-1][1])


def test_markers_in_the_users_text_never_reach_a_raw_prompt():
    spelled = Request("a <|fim_suffix|> b\nc = ", "\nd <|fim_middle|> e", Sampling(max_tokens=4, stop="none"))
    with PlayedServer(EXCHANGES[0].values[0]) as server:
        list(engine_of(server).complete(spelled, Deadline.of_ms(60_000)))
        prompt = server.asked[-1][1]["prompt"]
        assert prompt == "<|fim_prefix|> b\nc = <|fim_suffix|>\nd <|fim_middle|>"


def test_a_marker_that_the_server_lets_through_ends_the_middle():
    answers = EXCHANGES[0].values[0] | {"/v1/completions": openai_stream("x <|file_sep|>y")}
    with PlayedServer(answers) as server:
        chunks = list(engine_of(server).complete(REQUEST, Deadline.of_ms(60_000)))
        assert "".join(chunk.text for chunk in chunks) == "x "
        assert chunks[-1].reason is Reason.END


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("qwen2.5-coder:7b", "qwen2.5-coder-7b"),
        ("/m/Qwen2.5-Coder-0.5B-Instruct-Q4_K_M.gguf", "qwen2.5-coder-0.5b-instruct"),
        ("bigcode/starcoder2-3b", "starcoder2-3b"),
        ("codellama:34b-code", "codellama-13b"),
    ],
)
def test_a_servers_name_of_a_model_finds_our_card(name, card):
    assert card_like(name).fim == card_like(card).fim


def test_a_chat_model_has_no_template():
    assert template_of("llama3.2:latest") is None


def test_a_toy_dialect_from_outside_fills_a_middle(monkeypatch):
    """A dialect is one entry of a registry: recognised by its own address, read by its own rules."""
    from fimserver.engine.remote.dialect import Call

    toy = Dialect(
        probes=("/toy",),
        recognise=lambda found: ServerFacts("a toy", ("toy-1",)) if "/toy" in found else None,
        call=lambda question: Call("/fill", {"left": question.context.prefix}),
        read=lambda line: Piece(line, Reason.END) if line else None,
    )
    monkeypatch.setitem(DIALECTS, "toy", toy)
    with PlayedServer({"/toy": (200, {}), "/fill": ["a + b\n"]}) as server:
        engine = engine_of(server)
        assert [chunk.text for chunk in engine.complete(REQUEST, Deadline.of_ms(60_000))] == ["a + b"]
        assert engine.server(Deadline()).about() == "a toy, dialect toy, model toy-1"
