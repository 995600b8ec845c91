"""The keys of a mesh that is measured: made by the commands that its users type."""

from __future__ import annotations

import subprocess

__all__ = ["KeysFailed", "made_keys"]

#: The names that the programs of ``benchmarks/peers`` give their nodes.
_COMMANDS = (
    ("init", "--admin", "ana"),
    ("new", "relay", "psu-1"),
    ("new", "bank", "bank-1"),
)
_PATIENCE_S = 30.0


class KeysFailed(Exception):
    """A command did not make its key; the text has its own words."""


def made_keys(python: str, environ: dict[str, str]) -> None:
    """Make a network and its keys in the folder that ``LMH_KEYS_DIR`` names.

    :raises KeysFailed: that failed.
    """
    for words in _COMMANDS:
        command = [python, "-m", "labmesh", "keys", *words]
        try:
            done = subprocess.run(
                command, env=environ, capture_output=True, text=True, timeout=_PATIENCE_S
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise KeysFailed(f"labmesh keys {words[0]}: {exc}") from exc
        if done.returncode != 0:
            said = done.stderr.strip().splitlines()
            raise KeysFailed(f"labmesh keys {words[0]}: {said[-1] if said else 'it said nothing'}")
