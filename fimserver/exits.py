"""Ends of a command: its exit code, without a traceback or an abort, whatever it is at."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable

INTERRUPTED = 130  # the exit code of shells for Ctrl-C
ENGINE = "engine"  # name of the thread that runs models


def run_to_end(main: Callable[[], object]) -> None:
    """Run ``main`` and exit with its code, at once where an engine's thread still loads or computes.

    The end of the interpreter would destroy what the native code of that thread uses, and abort the process.
    Raises ``SystemExit``.
    """
    try:
        main()
    except KeyboardInterrupt:
        _end_now(INTERRUPTED)
        sys.exit(INTERRUPTED)
    except SystemExit as end:
        _end_now(end.code)
        raise


def _end_now(code: object) -> None:
    if isinstance(code, int | None) and any(each.name == ENGINE for each in threading.enumerate()):
        with contextlib.suppress(OSError, ValueError):  # the reader may be gone
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code or 0)
