"""Entry point of the ``fimserver`` command: Ctrl-C during imports ends it without a traceback."""

import sys

INTERRUPTED = 130  # the exit code of shells for Ctrl-C


def run() -> None:
    """Run the command line. Raises ``SystemExit``."""
    try:
        from fimserver.cli import main  # noqa: PLC0415 - the import is what Ctrl-C may interrupt

        main()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
