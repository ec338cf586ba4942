"""llama.cpp as an arm: fills the same spans with the same weights, if it is installed.

It is looked for in the folder that ``LLAMA_CPP`` names, else on PATH: ``llama-server`` (also under
``build/bin`` or ``bin``) and ``convert_hf_to_gguf.py``. To have it: unpack a release or a checkout of
llama.cpp, then ::

    cmake -B build -DLLAMA_CURL=OFF && cmake --build build -j2 --target llama-server
    LLAMA_CPP=$PWD python -m bench.speculation …

(without a network but with PyPI: ``pip download --no-deps --no-binary llama-cpp-python llama-cpp-python`` has
it in ``vendor/``). The weights are converted by its own converter, to f32, once; it needs the module ``gguf``
of the same folder, or ``pip install gguf``. Its table of pre-tokenizers is patched so that an unknown one may
be called ``default``: it is never used, prompts are ids. The server runs with as many threads as torch,
without its prompt cache, and is asked over loopback.
"""

from __future__ import annotations

import atexit
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.arms import Answer, Fleet, Skipped, Spec
from bench.spans import Span
from fimserver.cards import Card, model_folder

# Newer converters have their classes in a package beside the script, older ones in the script itself.
_CONVERT = """
import importlib, pathlib, sys
folder = sys.argv.pop(1)
sys.path[:0] = [folder, str(pathlib.Path(folder, "gguf-py"))]
script = importlib.import_module("convert_hf_to_gguf")
try:
    base = importlib.import_module("conversion.base")
except ImportError:
    base = script
def no_sentencepiece(self):
    raise FileNotFoundError("tokenizer.model")
for kind in vars(base).values():
    if isinstance(kind, type) and "get_vocab_base_pre" in vars(kind):
        kind.get_vocab_base_pre = lambda self, tokenizer: "default"
        kind._create_vocab_sentencepiece = no_sentencepiece  # it imports it before the file
script.main()
"""
_START_S = 60.0


class Llamas:
    """Servers of llama.cpp, one per arm, on weights that are converted once."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self._weights: dict[str, Path] = {}

    def arm(self, spec: Spec) -> Llama:
        """``llama.cpp``, ``llama.cpp+lookup/K8N3`` (n-grams of N, K drafts), ``llama.cpp+model/K3``."""
        server, converter = find_llama()
        options: dict[str, object] = {}
        if spec.name == "llama.cpp+lookup":
            names = {"K": "--spec-ngram-simple-size-m", "N": "--spec-ngram-simple-size-n"}
            options = {"--spec-type": "ngram-simple"} | {
                names[knob]: value for knob, value in spec.knobs.items()
            }
        elif spec.name == "llama.cpp+model":
            options = {
                "--spec-type": "draft-simple",
                "-md": self._convert(converter, self.fleet.draft_card()),
            }
            options |= {"--spec-draft-n-max": spec.knobs["K"]} if "K" in spec.knobs else {}
        elif spec.name != "llama.cpp":
            raise Skipped("there are llama.cpp, +lookup and +model")
        options = {"-m": self._convert(converter, self.fleet.card)} | options
        return Llama(
            spec.text, self.fleet, [str(server), *(str(part) for pair in options.items() for part in pair)]
        )

    def _convert(self, converter: Path, card: Card) -> Path:
        if card.name not in self._weights:
            folder, out = (
                model_folder(card, self.fleet.settings.models_dir),
                Path(tempfile.mkdtemp(prefix="fimserver-llama-")),
            )
            atexit.register(shutil.rmtree, out, ignore_errors=True)
            self._weights[card.name] = convert(converter, card, folder, out / card.name)
        return self._weights[card.name]


class Llama:
    """A ``llama-server`` process as an arm."""

    ours = False

    def __init__(self, name: str, fleet: Fleet, command: Sequence[str]) -> None:
        self.name, self.fleet, self.command = name, fleet, command
        self.port = _free_port()
        room = fleet.card.prompt_tokens + fleet.card.max_new_tokens + 64
        threads = str(torch.get_num_threads())
        where = [
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "-np",
            "1",
            "-c",
            str(room),
            "-t",
            threads,
            "-tb",
            threads,
        ]
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - the server writes there as long as it lives
        self.server = subprocess.Popen([*command, *where], stdout=self.log, stderr=self.log)
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def answer(self, span: Span, prompt: Sequence[int]) -> Answer:
        question = {
            "prompt": list(prompt),
            "n_predict": span.request.sampling.max_tokens,
            "temperature": 0,
            "cache_prompt": False,
        }
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        started = time.perf_counter()
        link.request("POST", "/completion", json.dumps(question | {"stream": True, "return_tokens": True}))
        events: list[tuple[float, dict[str, Any]]] = []
        for line in link.getresponse():
            if line.startswith(b"data: "):
                # The clock.
                events.append((1000 * (time.perf_counter() - started), json.loads(line[6:])))  # noqa: PERF401
        total_ms = 1000 * (time.perf_counter() - started)
        link.close()
        return _answer(events, total_ms, self.fleet)

    def about(self) -> dict[str, Any]:
        return {"weights": "f32", "options": [word for word in self.command[1:] if not word.startswith("/")]}

    def close(self) -> None:
        self.server.kill()
        self.server.wait()
        self.log.close()

    def _wait(self) -> None:
        """Wait until the weights are loaded. Raises ``Skipped``."""
        end = time.monotonic() + _START_S
        while time.monotonic() < end and self.server.poll() is None:
            try:
                link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                link.request("GET", "/health")
                if link.getresponse().status == http.client.OK:
                    return
            except OSError:
                pass
            time.sleep(0.1)
        self.log.seek(0)
        raise Skipped(f"llama-server did not start: {self.log.read()[-300:]}")


def _answer(events: Sequence[tuple[float, Mapping[str, Any]]], total_ms: float, fleet: Fleet) -> Answer:
    """Make an answer; the end token may not have been sent as such, but the event that it came has."""
    said = [(ms, event["tokens"]) for ms, event in events if event.get("tokens")]
    ms, last = events[-1]
    sent = [token for _, tokens in said for token in tokens]
    if last.get("stop_type") == "eos" and fleet.stops.isdisjoint(sent):
        said.append((ms, [min(fleet.stops)]))
        sent += said[-1][1]
    timings = last.get("timings", {})
    passes = len(sent) - len(said[0][1]) - int(timings.get("draft_n_accepted", 0))
    return Answer(said, total_ms, passes, passes, int(timings.get("draft_n", 0)))


def find_llama() -> tuple[Path, Path]:
    """Return the paths of the server and the converter. Raises ``Skipped``."""
    folder = os.environ.get("LLAMA_CPP", "")
    places = [Path(folder, sub) for sub in ("", "build/bin", "bin")] if folder else []
    path = os.pathsep.join([*map(str, places), os.environ.get("PATH", "")])
    server = shutil.which("llama-server", path=path)
    names = [Path(place, "convert_hf_to_gguf.py") for place in path.split(os.pathsep) if place]
    converter = next((name for name in names if name.is_file()), None)
    if server is None or converter is None:
        missing = "llama-server" if server is None else "convert_hf_to_gguf.py"
        raise Skipped(f"no {missing} on PATH or in LLAMA_CPP (how to get it: bench/llama.py)")
    return Path(server), converter


def convert(converter: Path, card: Card, folder: Path, out: Path) -> Path:
    """Convert the weights in a folder to an f32 GGUF file. Raises ``Skipped``."""
    shutil.copytree(folder, out)
    assert card.fim  # it has the ar route
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": card.fim.stops[0]}
    if not (out / "tokenizer_config.json").is_file():  # without it transformers would add its family's tokens
        (out / "tokenizer_config.json").write_text(json.dumps(config))
    weights = out / "model.gguf"
    command = [
        sys.executable,
        "-c",
        _CONVERT,
        str(converter.parent),
        str(out),
        "--outfile",
        str(weights),
        "--outtype",
        "f32",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not weights.is_file():
        raise Skipped(f"llama.cpp's converter failed: {done.stderr.strip()[-300:]}")
    return weights


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
