"""The command line: ``labmesh --help``."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]

_INTERRUPTED = 130


def main(tokens: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. Ctrl-C ends it, also while it is still being loaded."""
    try:
        from labmesh.cli.app import main as run
    except KeyboardInterrupt:
        return _INTERRUPTED
    return run(tokens)
