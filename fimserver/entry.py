"""Entry point of the ``fimserver`` command: Ctrl-C during imports ends it without a traceback."""

import sys

from fimserver.exits import INTERRUPTED, run_to_end


def run() -> None:
    """Run the command line. Raises ``SystemExit``."""
    try:
        from fimserver.cli import main  # noqa: PLC0415 - the import is what Ctrl-C may interrupt
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    run_to_end(main)
