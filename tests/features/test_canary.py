"""A word in every document must not appear anywhere else, with logs at DEBUG and errors that quote text.

The window and the host that it starts are real processes; Python's audit hook writes down what both of them open and
connect to. Only the engines are scripted.
"""

import ast
import os
import secrets
from pathlib import Path

import httpx2
import pytest

from fimserver.front.lsp.transport import encode
from tests.editor import Editor
from tests.hosts import OwnHosts

DOCUMENTS = int(os.environ.get("CANARY_DOCUMENTS", "20"))
SITE = Path(__file__).with_name("canary_site.py")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Run:
    """What is left of a session: everything said, logged, written, opened and connected to."""

    def __init__(self, token, workspace, own):
        self.token, self.workspace, self.own = token, workspace, own
        self.errors, self.reports, self.stderr, self.log, self.metrics, self.exit_code = (
            [],
            [],
            "",
            "",
            "",
            None,
        )
        self.suggested, self.reasons, self.events = 0, set(), []


def workspace_of(folder, token):
    """Files that may be read, that must not be, and that the editor opens."""
    folder.mkdir()
    (folder / ".gitignore").write_text("hidden.py\n")
    (folder / "helper.py").write_text(f"def helper(a):\n    '''{token}'''\n    return a\n")
    for name in ("hidden.py", ".env", "id_rsa", "server.pem"):
        (folder / name).write_text(f"KEY = '{token}'\n")
    return folder


def documents(folder, token):
    """Uri, language and text of documents of all kinds."""
    code = f"from helper import helper\nfrom hidden import KEY\n# {token}\nx = helper('{token}') + \n"
    for number in range(DOCUMENTS):
        yield (folder / f"file{number}.py").as_uri(), "python", code
    yield "untitled:Untitled-1", "python", code
    yield (folder / ".env").as_uri(), "plaintext", f"KEY={token}\n\n\n\n"
    yield (folder / "server.pem").as_uri(), "plaintext", f"{token}\n\n\n\n"
    yield (folder / "a.min.js").as_uri(), "javascript", f"var a='{token}'\n\n\n\n"
    yield (folder / "long.txt").as_uri(), "plaintext", "\n\n\n" + token * 30_000
    yield "file:///nowhere/\ud800.py", "python", code


def nonsense(token):
    """Messages that cannot be used, with the word in them."""
    quoted = f'"{token}"'
    return [
        quoted.encode(),
        f'{{"jsonrpc":"2.0","id":{quoted[:-1]}'.encode(),
        f'{{"jsonrpc":"2.0","id":9001,"method":{quoted},"params":{{"text":{quoted}}}}}'.encode(),
        f'{{"jsonrpc":"2.0","id":9002,"method":"textDocument/inlineCompletion","params":{quoted}}}'.encode(),
        f'{{"jsonrpc":"2.0","id":9003,"method":"workspace/executeCommand","params":{{"command":{quoted}}}}}'.encode(),
        f'{{"jsonrpc":"2.0","id":9004,"method":"initialize","params":{{"capabilities":{{}},"rootPath":{quoted}}}}}'.encode(),
        f'{{"jsonrpc":"2.0","method":"textDocument/didChange","params":{{"contentChanges":{quoted}}}}}'.encode(),
        f'{{"jsonrpc":"2.0","method":"workspace/didChangeConfiguration","params":{{"settings":{{"fimserver":{{"model":{quoted}}}}}}}}}'.encode(),
        f'{{"jsonrpc":"2.0","id":{quoted},"result":{quoted}}}'.encode(),
        f'{{"jsonrpc":"2.0","id":[{quoted}],"method":"shutdown"}}'.encode(),
        b'{"text":"' + token.encode() + b'\xff\xfe"}',
    ]


def use(editor, run):
    """Complete, edit, fail, and say nonsense."""
    for uri, language, text in documents(run.workspace, run.token):
        editor.open(uri, text, language)
        for _ in range(2):
            run.suggested += bool(editor.ask(uri, 3, 99, invoked=True))
            run.reports += [editor.explain(), editor.run("stats")]
            run.reasons.add(run.reports[-2]["reason"])
        editor.type(uri, 2, 0, 0, f"# {run.token}\n")
        editor.ask(uri, 4, 99)
        editor.notify("textDocument/didSave", {"textDocument": {"uri": uri}, "text": text})
    editor.link.send(*nonsense(run.token))
    for msg_id in (9001, 9002, 9003, 9004):
        editor.answer(msg_id)
    run.reports += [editor.explain(), editor.run("stats"), *editor.notifications]
    transport = httpx2.HTTPTransport(uds=str(run.own.sockets[0]))
    with httpx2.Client(base_url="http://host", transport=transport, trust_env=False) as client:
        run.metrics = client.get("/metrics").text + client.get("/health").text
        client.post("/v1/completions", content=b'{"prompt": 7, "x": "' + run.token.encode() + b'"}')
        client.post("/v1/completions", json={"prompt": "", "model": run.token[:5]})
    editor.link.raw(encode(b"{}") + f"out of step {run.token}\r\n\r\n".encode())
    run.exit_code = editor.link.process.wait(10)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("canary")
    token = f"canary{secrets.token_hex(8)}"
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(SITE.read_text("utf-8"))
    with OwnHosts() as own:
        run = Run(token, workspace_of(folder / "work", token), own)
        events = folder / "events"
        env = own.env | {
            "PYTHONPATH": str(folder / "site"),
            "CANARY_EVENTS": str(events),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        with Editor("pipes", "", env=env) as editor:
            hello = {
                "rootUri": run.workspace.as_uri(),
                "initializationOptions": {"status": True, "invokedDeadlineMs": 20_000},
            }
            editor.start(**hello)
            use(editor, run)
        run.stderr, run.log = editor.link.stderr, own.log
        run.errors = [
            answer for answers in editor.answers.values() for answer in answers if "error" in answer
        ]
        run.events = [ast.literal_eval(line) for line in events.read_text("utf-8").splitlines()]
        run.files = [
            path for path in own.folder.rglob("*") if path.is_file() and token.encode() in path.read_bytes()
        ]
    return run


def test_the_session_was_worth_looking_at(run):
    assert run.suggested >= 2
    assert {"failed", "end", "excluded", "too_large", "non_finite", "out_of_memory"} <= run.reasons
    assert len(run.errors) >= 7
    assert "DEBUG" in run.stderr
    assert "DEBUG" in run.log
    assert run.exit_code == 1


def test_no_log_has_any_text_of_a_document(run):
    assert run.token not in run.stderr
    assert run.token not in run.log
    assert run.files == []


def test_no_log_has_the_path_of_a_document(run):
    assert str(run.workspace) not in run.stderr
    assert str(run.workspace) not in run.log


def test_no_error_and_no_report_has_any_text_of_a_document(run):
    errors = [answer["error"] for answer in run.errors]
    assert run.token not in f"{errors} {run.reports} {run.metrics}"


def test_nothing_is_connected_to_but_the_users_own_socket(run):
    sockets = [(role, event, args) for role, event, args in run.events if event.startswith("socket.")]
    assert {(role, event) for role, event, _ in sockets} == {
        ("front", "socket.connect"),
        ("host", "socket.bind"),
    }
    assert {Path(args).parent for _, _, args in sockets} == {run.own.folder / "run" / "fimserver"}


def test_nothing_is_written_outside_of_the_users_own_folders(run):
    opened = [args for _, event, args in run.events if event == "open"]
    written = {path for path, flags in opened if flags & WRITES and path != os.devnull}
    assert written
    assert not [path for path in written if not Path(path).is_relative_to(run.own.folder)]


def test_no_file_of_the_workspace_is_opened_but_what_is_imported_and_may_be(run):
    opened = [args[0] for _, event, args in run.events if event == "open"]
    inside = {Path(path).name for path in opened if Path(path).is_relative_to(run.workspace)}
    assert inside == {"helper.py", ".gitignore"}


def test_only_the_host_is_started(run):
    started = [args for _, event, args in run.events if event == "subprocess.Popen"]
    assert [args[4] for args in started] == ["host"]
