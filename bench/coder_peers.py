"""Peer arms of ``bench.coder``: transformers, and xllamacpp (llama.cpp as a Python module, AVX2).

Each reads a JSON request a line and writes a JSON answer a line. The file imports nothing of fimserver, so
that xllamacpp can run in an environment of its own: ``PYTHON bench/coder_peers.py xllamacpp FILE THREADS
CONTEXT``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Answer = dict[str, Any]


def transformers_arm(file: str, threads: int, _context: int) -> Callable[[Answer], Answer]:
    """Greedy decoding with its own class and cache, on the packed weights, which are fastest in fp32."""
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    torch.set_num_threads(threads)
    path = Path(file)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    kept: dict[str, Any] = {"cache": None}

    def answer(request: Answer) -> Answer:
        cache = kept["cache"] if request.get("keep") else None
        if cache is None:
            cache = DynamicCache()
        else:
            cache.crop(request["keep"] - cache.get_seq_length())  # so many of the last ones go
        ids = torch.tensor([request["ids"]])
        first_ms = 0.0
        made: list[int] = []
        started = time.perf_counter()
        fresh = ids[:, cache.get_seq_length() :]
        with torch.inference_mode():
            while len(made) < request["tokens"]:
                logits = model(input_ids=fresh, past_key_values=cache, logits_to_keep=1).logits
                made.append(int(logits[0, -1].argmax()))
                first_ms = first_ms or 1000 * (time.perf_counter() - started)
                fresh = torch.tensor([[made[-1]]])
        kept["cache"] = cache
        return {"first_ms": first_ms, "whole_ms": 1000 * (time.perf_counter() - started), "made": made}

    return answer


def xllamacpp_arm(file: str, threads: int, context: int) -> Callable[[Answer], Answer]:
    """The completion endpoint of llama.cpp's server, called in this process; its own times."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx = context
    params.n_parallel = 1
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)

    def answer(request: Answer) -> Answer:
        asked = {
            "prompt": request["ids"],
            "n_predict": request["tokens"],
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": bool(request.get("keep")),
            "return_tokens": True,
        }
        got = server.handle_completions(asked)
        got = json.loads(got) if isinstance(got, str) else got
        timings = got["timings"]
        first_ms = timings["prompt_ms"]
        made = got.get("tokens") or [0] * timings["predicted_n"]
        return {"first_ms": first_ms, "whole_ms": first_ms + timings["predicted_ms"], "made": made}

    return answer


def peak_mb() -> float:
    """Highest resident memory of this process so far."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


ARMS = {"transformers": transformers_arm, "xllamacpp": xllamacpp_arm}


def main() -> None:
    """Serve one arm until its input ends."""
    name, file, threads, context = sys.argv[1:5]
    answers = sys.stdout
    sys.stdout = sys.stderr  # what a library prints is no answer
    started = time.perf_counter()
    answer = ARMS[name](file, int(threads), int(context))
    loaded = {"load_ms": 1000 * (time.perf_counter() - started), "rss_mb": peak_mb()}
    print(json.dumps(loaded), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line)) | {"rss_mb": peak_mb()}), file=answers, flush=True)


if __name__ == "__main__":
    main()
