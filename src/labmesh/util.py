"""What programs need before they make a node: the file's tables, and the network's password."""

from __future__ import annotations

import os
import sys
from getpass import getpass
from typing import Any

from labmesh.config import read_toml
from labmesh.errors import ConfigError

__all__ = ["prompt_network_password", "read_toml_config"]

_PASSWORD = "LMH_NETWORK_PASSWORD"


def read_toml_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a TOML file as plain dicts: ``read_toml_config("labmesh.toml")["broker"]["address"]``.

    It only reads: what is in the file is returned, unchecked and without defaults.

    :raises ConfigError: one line, when the file is missing or is not TOML; it names the path and
        the current folder.
    """
    return read_toml(path)


def prompt_network_password(confirm: bool = False) -> str | None:
    """The network's password, asked for at the terminal when the environment has none.

    When ``LMH_NETWORK_PASSWORD`` is set, also to the empty string, its value is returned at once.
    Without a terminal nobody is asked, and the answer is None. Otherwise the answer is kept in that
    variable of this process, so that nodes made afterwards use it. An empty answer means no
    password: nodes then talk on this computer only.

    :param confirm: ask twice, until both answers are the same.
    :raises ConfigError: the terminal was closed instead of an answer.
    """
    given = os.environ.get(_PASSWORD)
    if given is not None:
        return given
    if sys.stdin is None or sys.stdin.closed or not sys.stdin.isatty():
        return None
    try:
        password = _ask(confirm)
    except EOFError as exc:
        raise ConfigError(
            f"no network password was given; type one, or set {_PASSWORD} (empty: no password)"
        ) from exc
    os.environ[_PASSWORD] = password
    return password


def _ask(confirm: bool) -> str:
    prompt = "Network password (empty for none): "
    while True:
        password = getpass(prompt)
        if not password or not confirm or getpass("The same again: ") == password:
            return password
        prompt = "The two differ. Network password (empty for none): "
