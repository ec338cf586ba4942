"""Driver of a real Neovim: keys in; ghost text, buffer, screen and messages out.

Nothing sleeps for luck: every wait polls a condition each 10 ms until a deadline.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import pynvim

from tests.editors.editor import Ghost, Value, command_line, wait
from tests.editors.picture import Screen

INIT = Path(__file__).with_name("init.lua")
PLUGIN = Path(__file__).parents[2] / "editors/nvim"
NAMED = Path(os.environ.get("NVIM", ""))  # inside a Neovim it is that one's socket
PROGRAM = NAMED if NAMED.name and not NAMED.is_socket() else Path.home() / ".cache/fimserver/neovim/nvim"
COLUMNS, ROWS = 100, 30
PATIENCE_S = 60.0
WATCHDOG_S = 240.0  # an editor that asks its user something answers no call: it is killed then


def why_not() -> str:
    """Why no test can run here, or an empty string."""
    install = "run tests/editors/install_neovim.sh, or name a Neovim 0.12 in NVIM"
    if not os.access(PROGRAM, os.X_OK):
        return f"no {PROGRAM}: {install}"
    ask = [
        str(PROGRAM),
        "--clean",
        "--headless",
        "+lua io.write(tostring(vim.lsp.inline_completion ~= nil))",
        "+qa",
    ]
    answer = subprocess.run(ask, capture_output=True, text=True, timeout=60, check=False)
    return (
        ""
        if answer.stdout + answer.stderr == "true"
        else f"{PROGRAM} has no vim.lsp.inline_completion: {install}"
    )


def processes(runtime: Path, word: str = "") -> list[psutil.Process]:
    """The processes with ``runtime`` as their XDG_RUNTIME_DIR, and ``word`` among their arguments if one is given."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("XDG_RUNTIME_DIR") == str(runtime) and (
                not word or word in process.cmdline()
            ):
                found.append(process)
    return found


class Neovim:
    """One editor with one language server, our plugin in it. Files are made in ``folder``; ``env`` is for the editor and its server."""

    name = "Neovim"

    def __init__(
        self,
        folder: Path,
        command: Sequence[str],
        env: Mapping[str, str],
        init_options: Mapping[str, Any] | None = None,
    ) -> None:
        server = json.dumps(
            {"plugin": str(PLUGIN), "cmd": list(command), "init_options": dict(init_options or {})}
        ).replace("'", "''")
        self.folder = folder
        self._command = list(command)
        self._log = Path(env["XDG_STATE_HOME"]) / "nvim" / "lsp.log"
        start = [
            str(PROGRAM),
            "--embed",
            "--clean",
            "--cmd",
            f"let g:fimserver = json_decode('{server}')",
            "-u",
            str(INIT),
        ]
        self._argv = ["env", *(f"{name}={value}" for name, value in env.items()), *start]
        self._asked, self._screen = 0, Screen()

    def __enter__(self) -> Self:
        self._nvim = pynvim.attach("child", argv=self._argv)
        self._nvim.ui_attach(COLUMNS, ROWS, rgb=True, ext_linegrid=True)
        self._process = psutil.Process(self._nvim.call("getpid"))
        self._watchdog = threading.Timer(WATCHDOG_S, self._process.kill)
        self._watchdog.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print("\n".join(["the screen was:", *self.screen(), "the messages were:", self.messages()]))
        with contextlib.suppress(OSError, EOFError):
            self._nvim.command("qall!")
            while True:  # until it hangs up
                self._nvim.call("getpid")
        self._close_pipes()
        self._nvim.close()
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process.wait(PATIENCE_S)
        self._watchdog.cancel()

    def _close_pipes(self) -> None:
        """Close the pipes in the loop of pynvim, which closes that loop before they are closed."""
        events = self._nvim._session._async_session._msgpack_stream.loop
        for transport in (events._transport, *events._to_close):
            transport.close()
        for _ in range(8):  # one turn of the loop each: a closed pipe tells its process, and that its reader
            events._loop.call_soon(events._loop.stop)
            events._loop.run_forever()

    def wait(self, what: str, ready: Callable[[], Value], seconds: float = PATIENCE_S) -> Value:
        """Poll until ``ready`` gives something true, and return it. Raises ``TimeoutError`` that says ``what``."""
        return wait(what, ready, seconds)

    def open(self, name: str, content: bytes = b"") -> None:
        """Write a file, edit it, and begin to insert at its end once the server is initialized."""
        self.open_without_server(name, content)
        self.wait_initialized()

    def open_without_server(self, name: str, content: bytes = b"") -> None:
        path = self._nvim.call("fnameescape", str(self.folder / name))
        self.normal_mode()
        self.command(
            f"silent! bwipeout! {path}"
        )  # a changed buffer of a changed file makes Neovim ask what to do
        (self.folder / name).write_bytes(content)
        self.command(f"edit {path}")
        self.keys("GA")
        self.wait("insert mode", lambda: self.mode() == "i")

    def normal_mode(self) -> None:
        self.keys("<Esc>")
        self.wait("normal mode", lambda: self.mode() == "n")

    def wait_initialized(self) -> None:
        self.wait(
            "the server to be attached and initialized",
            lambda: self.lua(
                "local c = vim.lsp.get_clients({ bufnr = 0 })[1]; return c ~= nil and c.initialized == true"
            ),
        )

    def keys(self, keys: str) -> None:
        """Press keys, in Neovim's notation. The next ``settle`` waits for what they cause."""
        self._asked = self.lua("return asked()")
        self._nvim.input(keys)

    def type(self, text: str) -> None:
        """Type text and wait until it stands before the cursor."""
        want = self.before_cursor() + text
        self.keys(text.replace("<", "<lt>").replace("\n", "<CR>"))
        self.wait(f"{text!r} to be typed", lambda: self.before_cursor() == want)

    def settle(self) -> Ghost | None:
        """The ghost text after the server answered what the last keys made Neovim ask."""
        self.wait("the server to be asked and to answer", lambda: self.lua(f"return settled({self._asked})"))
        return self.ghost()

    def ghost(self) -> Ghost | None:
        found = self.lua("return ghost()")
        return Ghost(*found) if found and found[2] else None

    def accept(self) -> None:
        self.keys("<Tab>")

    def accept_word(self) -> None:
        self.keys("<M-w>")

    def accept_line(self) -> None:
        self.keys("<M-l>")

    def dismiss(self) -> None:
        self.keys("<C-e>")

    def another(self, first: Ghost) -> Ghost | None:
        """Ask for candidates and go to the next; ``None`` where there is none."""
        self.keys(r"<M-\>")
        self.settle()
        self.keys("<M-]>")
        with contextlib.suppress(TimeoutError):
            self.wait("another candidate", lambda: (ghost := self.ghost()) and ghost != first, 0.5)
            return self.ghost()
        return None

    def undo(self) -> None:
        self.normal_mode()
        self.command("silent undo")

    def save(self) -> bytes:
        """Write the file; what is in it then."""
        self.command("silent write")
        return Path(self.command("echo expand('%:p')")).read_bytes()

    @staticmethod
    def final_newline(end: str) -> str:
        """What stands behind the last line in the file."""
        return end

    def status(self) -> str:
        """What the status line says of us."""
        return str(self.lua("return require('fimserver').status()")).removeprefix("fim ")

    def choose_route(self, route: str) -> None:
        self.command(f"Fim route {route}")
        self.wait(f"route {route}", lambda: self.lua("return require('fimserver').state().setRoute") == route)

    def explanation(self) -> str:
        """What the window of ``:Fim explain`` says."""
        self.normal_mode()
        self.command("Fim explain")
        return "\n".join(self.wait("the window", lambda: self.lua("return float()")))

    def health(self) -> str:
        """The report of ``:checkhealth fimserver``."""
        self.normal_mode()
        self.command("checkhealth fimserver")
        self.wait("the report", lambda: len(self.lines()) > 5)
        return "\n".join(self.lines())

    def shoot(self, path: Path) -> None:
        """Write a picture of the screen."""
        self.command("redraw!")
        while self._nvim._session._pending_messages:
            _, name, batches = self._nvim.next_message()
            if name == "redraw":
                self._screen.take(batches)
        self._screen.shoot(path)

    def complaints(self) -> list[str]:
        """All that Neovim told its user, but for what was asked for."""
        return [
            line for line in self.messages().splitlines() if line and not line.startswith("fimserver: route")
        ]

    def place(self, row: int, column: int) -> None:
        """Put the cursor before a byte of a row, both from 0."""
        self._asked = self.lua("return asked()")
        self._nvim.current.window.cursor = (row + 1, column)

    def told(self) -> dict[str, Any]:
        """What the server says of the last request."""
        ask = (
            "return vim.lsp.get_clients()[1]:request_sync('fimserver/explain', vim.empty_dict(), 5000).result"
        )
        return dict(self.lua(ask))

    def lines(self) -> list[str]:
        return list(self._nvim.current.buffer)

    def before_cursor(self) -> str:
        """The buffer up to the cursor."""
        row, column = self._nvim.current.window.cursor
        lines = self.lines()[:row]
        return "\n".join([*lines[:-1], lines[-1].encode()[:column].decode()])

    def mode(self) -> str:
        return str(self._nvim.api.get_mode()["mode"])

    def command(self, command: str) -> str:
        """Run an Ex command and return what it prints."""
        return str(self._nvim.command_output(command))

    def lua(self, code: str) -> Any:
        return self._nvim.exec_lua(code)

    def messages(self) -> str:
        """All that Neovim told its user."""
        return self.command("messages")

    def log(self) -> str:
        """What Neovim wrote of the language server: errors, and all that the server printed to stderr."""
        return self._log.read_text() if self._log.exists() else ""

    def screen(self) -> list[str]:
        """What a person sees, one string a row."""
        return list(self.lua("return screen()"))

    def server(self) -> psutil.Process:
        """The language server that Neovim started."""
        return next(p for p in self._process.children(recursive=True) if command_line(p) == self._command)
