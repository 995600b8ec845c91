"""Who and what made a dataset, as far as its sender knows by itself."""

from __future__ import annotations

import functools
import getpass
import logging
import os
import platform
import socket
import sys
from typing import Any

import msgspec

from labmesh.version import __version__

__all__ = ["driver_facts", "plain_facts", "sender_facts"]

log = logging.getLogger(__name__)

_TEXT_CHARS = 1000
_DEPTH = 8


def sender_facts() -> dict[str, Any]:
    """What each sender tells of itself: ``user``, ``host``, ``program``, ``pid``, ``python``,
    ``labmesh`` (its version).
    """
    return {
        "user": _user(),
        "host": socket.gethostname(),
        "program": sys.argv[0][:_TEXT_CHARS] if sys.argv else "",
        "pid": os.getpid(),
        "python": platform.python_version(),
        "labmesh": __version__,
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # an account without a name, as in some containers
        return ""


def driver_facts(kind: type) -> dict[str, str]:
    """A driver's class and where it comes from: ``driver``, and ``package`` and ``version`` where
    it was installed, else ``file``. The first time it reads what is installed, which blocks.
    """
    return {"driver": f"{kind.__module__}:{kind.__qualname__}", **_module_facts(kind.__module__)}


@functools.cache
def _module_facts(module: str) -> dict[str, str]:
    package = _package_of(module.partition(".")[0])
    if package is not None:
        return {"package": package[0], "version": package[1]}
    file = getattr(sys.modules.get(module), "__file__", None)
    return {"file": os.path.abspath(file)} if file else {}


def _package_of(module: str) -> tuple[str, str] | None:
    """The distribution that a module is from, and its version."""
    from importlib import metadata  # it takes a while to load, and only drivers ask for it

    try:
        return module, metadata.version(module)
    except (metadata.PackageNotFoundError, ValueError):
        pass
    try:
        package = metadata.packages_distributions()[module][0]
        return package, str(metadata.version(package))
    except Exception as exc:
        # Whatever a broken installation brings about: nobody loses a dataset by it.
        log.debug("it is not known where %s is from: %r", module, exc)
        return None


def plain_facts(value: object, max_bytes: int) -> Any:
    """A value in text, numbers, lists and dicts; what is none of these, or too large, as a text."""
    made = _plain(value, 0)
    size = len(msgspec.msgpack.encode(made))
    return made if size <= max_bytes else f"({size} bytes, too many to be kept here)"


def _plain(value: object, depth: int) -> Any:
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else str(value)
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict) and depth < _DEPTH:
        return {str(key)[:_TEXT_CHARS]: _plain(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, list | tuple) and depth < _DEPTH:
        return [_plain(inner, depth + 1) for inner in value]
    return repr(value)[:_TEXT_CHARS].encode("utf-8", "replace").decode()
