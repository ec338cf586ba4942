"""Driver of a real VS Code in a headless Chromium: keys in; ghost text, document and status bar out.

Every wait polls a condition until a deadline.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil

from tests.browser import chromium
from tests.editors.editor import Ghost, Value, command_line, wait
from tests.hosts import free_port

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

FOLDER = Path(os.environ.get("VSCODE_FOLDER", Path.home() / ".cache/fimserver/vscode"))
NODE = FOLDER / "node/node_modules/node/bin/node"
ENTRY = FOLDER / "node_modules/code-server/out/node/entry.js"
HERE = Path(__file__).parent
EXTENSION = Path(os.environ.get("FIMSERVER_VSIX", HERE.parents[1] / "editors/vscode/fimserver.vsix"))
PATIENCE_S = 60.0
SIZE = {"width": 1000, "height": 620}

# What could stand in the way of a test, and nothing else.
SETTINGS: Mapping[str, Any] = {
    "editor.quickSuggestions": {"other": "off", "comments": "off", "strings": "off"},
    "editor.suggestOnTriggerCharacters": False,
    "editor.autoClosingBrackets": "never",
    "editor.autoClosingQuotes": "never",
    "editor.autoIndent": "none",
    "editor.wordBasedSuggestions": "off",
    "editor.minimap.enabled": False,
    "files.autoSave": "off",
    "workbench.startupEditor": "none",
    "workbench.tips.enabled": False,
    "workbench.secondarySideBar.defaultVisibility": "hidden",
    "chat.disableAIFeatures": True,
    "telemetry.telemetryLevel": "off",
    "window.menuBarVisibility": "compact",
    "git.enabled": False,
    "remote.autoForwardPorts": False,  # a port that another program opens is none of the tests' business
}
# Ghost text as it is drawn: the rest of the cursor's line, then the lines in the zone below it.
GHOST = """() => {
  const shown = e => e.textContent.replaceAll('\\u00a0', ' ').replaceAll('\\u200b', '');
  const all = selector => [...document.querySelectorAll('.editor-instance .monaco-editor.focused ' + selector)];
  const first = all('.view-line [class*="ghost-text-decoration"]').map(shown).join('');
  const below = all('.suggest-preview-text .view-line').map(shown);
  return first || below.length ? [first, ...below].join('\\n') : null;
}"""


def why_not() -> str:
    """Why no test can run here, or an empty string."""
    missing = [path for path in (NODE, ENTRY, EXTENSION) if not path.exists()]
    return f"no {missing[0]}: run tests/editors/install_vscode.sh" if missing else chromium.why_not()


class Server:
    """One code-server with our extension, for any number of windows. ``env`` is for it and all that it starts."""

    def __init__(
        self, folder: Path, command: Sequence[str], env: Mapping[str, str], settings: Mapping[str, Any]
    ) -> None:
        self.folder, self._env = folder, dict(os.environ) | dict(env)
        self.ports, self.program = folder / "ports.jsonl", folder / "fimserver"
        self._env |= {"PROBE_PORTS": str(self.ports), "PATH": f"{NODE.parent}:{os.environ['PATH']}"}
        self._own = ["--user-data-dir", str(folder / "user"), "--extensions-dir", str(folder / "extensions")]
        folder.mkdir()
        self.write_program(self.program, command)
        self._write("User", SETTINGS)
        self._write("Machine", {"fimserver.path": str(self.program), **settings})
        shutil.copytree(HERE / "probe", folder / "extensions/fimserver-tests.probe-0.0.1")
        self._run("--install-extension", str(EXTENSION))
        self.port = free_port()

    def _write(self, scope: str, settings: Mapping[str, Any]) -> None:
        path = self.folder / "user" / scope / "settings.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(settings))

    def write_program(self, path: Path, command: Sequence[str], first: str = ":") -> None:
        """A program that runs ``command`` and writes down when which message passed; ``first`` is done before, in sh."""
        tap = shlex.join([sys.executable, str(HERE / "wiretap.py"), str(self.folder), *command])
        path.write_text(f'#!/bin/sh\n{first}\nexec {tap} "$@"\n')
        path.chmod(0o755)

    def _run(self, *arguments: str) -> None:
        subprocess.run(
            [NODE, ENTRY, *self._own, *arguments], env=self._env, check=True, capture_output=True, timeout=120
        )

    def __enter__(self) -> Self:
        quiet = [
            "--auth",
            "none",
            "--disable-telemetry",
            "--disable-update-check",
            "--disable-workspace-trust",
        ]
        command = [str(NODE), str(ENTRY), *self._own, *quiet, "--bind-addr", f"127.0.0.1:{self.port}"]
        with (self.folder / "code-server.log").open("wb") as log:
            self._process = subprocess.Popen(
                command, env=self._env, stdout=log, stderr=log, start_new_session=True
            )
        wait("code-server to listen", self._listens, PATIENCE_S)
        return self

    def _listens(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=2):
                return True
        except OSError:
            return False

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, 15)
        self._process.wait(PATIENCE_S)

    def url(self, workspace: Path) -> str:
        return f"http://127.0.0.1:{self.port}/?{urllib.parse.urlencode({'folder': str(workspace)})}"


class VSCode:
    """One window. Files are made in its folder."""

    name = "VS Code"

    def __init__(self, server: Server, page: Page, folder: Path) -> None:
        self.server, self.page, self.folder = server, page, folder
        self._mark = 0
        page.goto(server.url(folder))
        page.wait_for_selector(".monaco-workbench", timeout=PATIENCE_S * 1000)
        probe = wait("the window to be ready", self._probe, PATIENCE_S)
        self._port, self._pid = probe["port"], probe["pid"]
        self.traffic = server.folder / f"traffic-{self._pid}.jsonl"

    def _probe(self) -> dict[str, Any] | None:
        """Where the probe of this window listens, and in which process."""
        lines = self.server.ports.read_text().splitlines() if self.server.ports.exists() else []
        return next(
            (row for row in map(json.loads, reversed(lines)) if row["folder"] == str(self.folder)), None
        )

    def call(self, name: str, *arguments: Any) -> Any:
        """Something done from inside the window, that a person would do with the mouse."""
        body = json.dumps({"call": name, "args": arguments}).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}", body, timeout=PATIENCE_S) as response:
            answer = json.load(response)
        if "error" in answer:
            raise RuntimeError(f"{name}: {answer['error']}")
        return answer["result"]

    def wait(self, what: str, ready: Callable[[], Value], seconds: float = PATIENCE_S) -> Value:
        return wait(what, ready, seconds)

    def open(self, name: str, content: bytes = b"") -> None:
        """Write a file, and begin to insert at its end."""
        path = self.folder / name
        before = self._opened(path)
        self._show(path, content)
        self.wait("the server to know the file", lambda: self._opened(path) > before)
        # A server hears of files a little before it is ready.
        self.wait("the server to be ready", lambda: "starting" not in self.status())
        if not self._asked():
            self.wait("VS Code to ask it", self._asks)
            self.call("run", "editor.action.inlineSuggest.hide")

    def _asks(self) -> bool:
        """Whether VS Code asks the server that runs now, which it does not before it has registered it."""
        self.call("run", "editor.action.inlineSuggest.trigger")
        return bool(self._asked())

    def _show(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        self.page.bring_to_front()
        self.call("open", str(path))
        self.wait("the editor to have the focus", lambda: self.page.locator(".monaco-editor.focused").count())

    def _opened(self, path: Path) -> int:
        return sum(
            row["method"] == "textDocument/didOpen" and row["uri"] == path.as_uri() for row in self._traffic()
        )

    def set(self, name: str, value: Any) -> None:
        """Change a setting to another value, and wait until the server was given it."""
        before = self._configured()
        self.call("set", name, value)
        self.wait(f"the server to take over {name}", lambda: self._configured() > before)

    def _configured(self) -> int:
        """How often the server asked for its settings and was answered."""
        rows = self._traffic()
        answered = {row["id"] for row in rows if row["from"] == "editor" and row["method"] is None}
        return sum(row["method"] == "workspace/configuration" and row["id"] in answered for row in rows)

    def press(self, keys: str) -> None:
        self._mark = len(self._asked())
        self.page.keyboard.press(keys)

    def type(self, text: str) -> None:
        """Type text and wait until it stands before the cursor."""
        want = self.before_cursor() + text
        self._mark = len(self._asked())
        for char in text:
            self.page.keyboard.press("Enter") if char == "\n" else self.page.keyboard.type(char)
        self.wait(f"{text!r} to be typed", lambda: self.before_cursor() == want)

    def settle(self) -> Ghost | None:
        """The ghost text after the server answered what the last keys made VS Code ask."""
        self.wait("the server to be asked and to answer", self._settled)
        return self.ghost()

    def _settled(self) -> bool:
        """Whether something was asked since the last keys, for the place where the cursor is, and all is answered."""
        asked, now = self._asked(), self.call("text")
        here = {"line": now["line"], "character": now["column"]}
        answered = {row["id"] for row in self._traffic() if row["from"] == "server" and row["method"] is None}
        return (
            len(asked) > self._mark
            and asked[-1]["position"] == here
            and all(row["id"] in answered for row in asked)
        )

    def _asked(self) -> list[dict[str, Any]]:
        return [row for row in self._traffic() if row["method"] == "textDocument/inlineCompletion"]

    def _traffic(self) -> list[dict[str, Any]]:
        """What passed between VS Code and the server that runs now."""
        rows = (
            [json.loads(line) for line in self.traffic.read_text().splitlines()]
            if self.traffic.exists()
            else []
        )
        starts = [number for number, row in enumerate(rows) if row["method"] == "initialize"]
        return rows[starts[-1] :] if starts else []

    def ghost(self) -> Ghost | None:
        text = self.page.evaluate(GHOST)
        now = self.call("text")
        return Ghost(now["line"], len(self._line(now)[: now["column"]].encode()), text) if text else None

    @staticmethod
    def _line(now: Mapping[str, Any]) -> str:
        return str(now["text"]).replace("\r\n", "\n").split("\n")[now["line"]]

    def place(self, row: int, column: int) -> None:
        """Put the cursor before a character of a row, both from 0, and ask for what is there: VS Code asks when one types."""
        self.call("place", row, column)
        self._mark = len(self._asked())
        self.call("run", "editor.action.inlineSuggest.trigger")

    def told(self) -> dict[str, Any]:
        """What the server says of the last request."""
        return dict(self.call("run", "fimserver.explain"))

    def lines(self) -> list[str]:
        return str(self.call("text")["text"]).replace("\r\n", "\n").split("\n")

    def before_cursor(self) -> str:
        """The document up to the cursor, whose column counts UTF-16 units."""
        now = self.call("text")
        lines = str(now["text"]).replace("\r\n", "\n").split("\n")[: now["line"] + 1]
        units = lines[-1].encode("utf-16-le")[: 2 * now["column"]]
        return "\n".join([*lines[:-1], units.decode("utf-16-le")])

    def accept(self) -> None:
        """VS Code's Tab indents as long as the ghost text begins with blanks."""
        while (shown := self.ghost()) and shown.text.startswith(" "):
            self.press("Tab")
            self.settle()
        self.press("Tab")

    def accept_word(self) -> None:
        self.press("Control+ArrowRight")

    def accept_line(self) -> None:
        self.press("Alt+l")

    def dismiss(self) -> None:
        self.press("Escape")

    def undo(self) -> None:
        self.press("Control+z")

    def another(self, first: Ghost) -> Ghost | None:
        """Ask for candidates and go to the next; ``None`` where there is none."""
        self.press("Alt+]")
        with contextlib.suppress(TimeoutError):
            self.wait("another candidate", lambda: (ghost := self.ghost()) and ghost != first, 2)
            return self.ghost()
        return None

    def save(self) -> bytes:
        """Write the file; what is in it then."""
        self.call("save")
        return Path(self.call("text")["name"]).read_bytes()

    @staticmethod
    def final_newline(_end: str) -> str:
        """What stands behind the last line in the file."""
        return ""

    def status(self) -> str:
        """What our item in the status bar says, to the eye and to a screen reader."""
        item = self.page.locator(r"#fimserver\.fimserver\.fimserver\.status")
        return f"{item.inner_text().strip()} | {item.locator('a').get_attribute('aria-label')}"

    def entries(self) -> list[str]:
        """What the menu offers."""
        labels = [row.locator(".label-name").inner_text().strip() for row in self.menu().all()]
        self.press("Escape")
        return labels

    def health(self) -> str:
        """The page of ``FIM: Doctor``, as soon as it has what the server says."""
        self.command("FIM: Doctor")
        return self.wait("what the host says", lambda: self.page_with("round trip ms"), 120)

    def shoot(self, path: Path) -> None:
        """Write a picture of the window."""
        self.page.screenshot(path=path)

    def menu(self) -> Locator:
        """The entries of the menu behind our item in the status bar."""
        self.page.locator(r"#fimserver\.fimserver\.fimserver\.status").click()
        rows = self.page.locator(".quick-input-widget .monaco-list-row")
        rows.first.wait_for()
        return rows

    def choose(self, entry: str) -> None:
        """Click on an entry of the menu."""
        self.menu().filter(
            has=self.page.locator(".label-name", has_text=re.compile(rf"^\W*{entry}$"))
        ).click()
        self.page.locator(".quick-input-widget").wait_for(state="hidden")
        self.call("run", "workbench.action.focusActiveEditorGroup")

    def choose_route(self, route: str) -> None:
        self.choose(route)
        self.wait(f"route {route}", lambda: self.call("run", "fimserver.setRoute", "") == route)

    def command(self, title: str) -> None:
        """Run a command by its name, as from the palette."""
        self.page.keyboard.press("F1")
        self.page.locator(".quick-input-widget input").fill(f">{title}")
        self.page.locator(".quick-input-widget .monaco-list-row.focused").filter(has_text=title).wait_for()
        self.page.keyboard.press("Enter")

    def explanation(self) -> str:
        """The page of ``FIM: Explain the Last Answer``."""
        self.command("FIM: Explain the Last Answer")
        return self.wait("the page", lambda: self.page_with("Why it ended"))

    def page_with(self, text: str) -> str:
        """The text of a page of ours that has ``text`` in it."""
        for frame in self.page.frames[1:]:
            with contextlib.suppress(chromium.error()):  # it is being drawn anew
                if text in (body := frame.locator("body").inner_text(timeout=1000)):
                    return str(body)
        return ""

    def open_without_server(self, name: str, content: bytes = b"") -> None:
        self._show(self.folder / name, content)

    def complaints(self) -> list[str]:
        """Notifications that are on the screen."""
        return list(
            self.page.locator(".notifications-toasts .notification-list-item-message").all_inner_texts()
        )

    def clear(self) -> None:
        """No notification is there and no file is open any more."""
        self.call("clear")

    def servers(self) -> set[psutil.Process]:
        """The language servers that this window has started and that run."""
        return {
            process for process in psutil.Process(self._pid).children(recursive=True) if _is_server(process)
        }

    def starts(self) -> int:
        """How many language servers were started."""
        return sum(
            json.loads(line)["method"] == "initialize" for line in self.traffic.read_text().splitlines()
        )

    @contextmanager
    def using(self, program: Path) -> Iterator[None]:
        """Another program in the settings, for a while."""
        self.call("set", "fimserver.path", str(program))
        try:
            yield
        finally:
            self.call("set", "fimserver.path", str(self.server.program))
            self.clear()


def _is_server(process: psutil.Process) -> bool:
    command = command_line(process)
    return str(HERE / "wiretap.py") not in command and "fimserver.cli" in command and "host" not in command


class Desk:
    """Windows of one code-server. The first one is used again and again, as it takes long to open."""

    def __init__(self, server: Server, browser: Browser) -> None:
        self._server, self._free = server, list[VSCode]()
        self._context = browser.new_context(viewport=SIZE, device_scale_factor=2)  # one person
        self._is_new = True

    @contextmanager
    def window(self, folder: Path, command: Sequence[str] = ()) -> Iterator[VSCode]:
        """A window, which may be the first one with a folder of its own; another ``command`` goes into its settings."""
        window = self._free.pop() if self._free else self._open(folder)
        try:
            with window.using(Path(command[0])) if command else contextlib.nullcontext():
                yield window
        finally:
            window.clear()
            self._free.append(window)

    def _open(self, folder: Path) -> VSCode:
        window = VSCode(self._server, self._context.new_page(), folder)
        if self._is_new:
            window.wait(
                "the walkthrough, which opens by itself once",
                window.page.locator(".getting-started-step").count,
            )
            window.clear()
        self._is_new = False
        window.call("run", "workbench.action.closeSidebar")
        return window
