"""Where the audit journal of a node is, and what a command writes into that of the broker."""

from __future__ import annotations

import getpass
import time
from pathlib import Path
from typing import Any

import platformdirs

from labmesh.errors import ConfigError
from labmesh.protocol.audit import Entry, short_parameters
from labmesh.storage.journal import Journal

__all__ = ["OFF", "audit_file", "note_by_command"]

#: In the place of a folder: no journal.
OFF = "off"


def audit_file(
    audit_dir: str, network: str, kind: str, node_id: str, *, has_keys: bool
) -> Path | None:
    """The journal of a node; None: it has none.

    :param audit_dir: a folder, ``off``, or empty: the usual place where nodes have keys.
    """
    if audit_dir == OFF or not (audit_dir or has_keys):
        return None
    if audit_dir:
        folder = Path(audit_dir).expanduser().absolute()
    else:
        folder = platformdirs.user_state_path("labmesh", appauthor=False) / "audit" / network
    return folder / (f"{kind}.jsonl" if kind == node_id else f"{kind}-{node_id}.jsonl")


def note_by_command(audit_dir: str, network: str, method: str, name: str, **parameters: Any) -> str:
    """Note in the broker's journal what a command did to the list; why that failed, or nothing."""
    path = audit_file(audit_dir, network, "broker", "broker", has_keys=True)
    if path is None:
        return ""
    entry = Entry(
        time=time.time(),
        what="access",
        node="broker",
        user=f"local:{_system_user()}",
        object=name,
        method=method,
        parameters=short_parameters(kwargs=parameters),
    )
    try:
        Journal(path).append([entry])
    except (OSError, ConfigError) as exc:
        return f"this is not in the audit journal: {exc}"
    return ""


def _system_user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # the system knows no name
        return "unknown"
