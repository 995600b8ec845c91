"""``module:Class`` of a configuration file or command line → driver object."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from types import ModuleType
from typing import Any

from labmesh.errors import ConfigError
from labmesh.instruments.signatures import shortened

__all__ = ["load_driver"]

_EXAMPLE = "labmesh.instruments.simulated:PowerSupply"
_ARGUMENT_CHARS = 80
_MESSAGE_CHARS = 500


def load_driver(
    spec: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
) -> object:
    """Import ``module:Class`` and call it.

    The current folder is searched first, as by ``python -m``, and stays on the search path, for
    what the driver imports later. Behind the colon anything that can be called may stand, also a
    function, or a name inside a class (``module:Outer.make``).

    :raises ConfigError: one line: what is wrong with it, and what to do.
    """
    module_name, colon, path = spec.partition(":")
    if not (module_name and colon and path):
        raise ConfigError(
            f"driver {spec!r} is not module:Class; write it like {_EXAMPLE}", driver=spec
        )
    module = _import(module_name, spec)
    factory = _look_up(module, path, spec)
    if not callable(factory):
        raise ConfigError(
            f"driver {spec!r}: {path} is a {type(factory).__name__}, which cannot be called; "
            "name a class or a function that makes the driver",
            driver=spec,
        )
    keywords = dict(kwargs or {})
    try:
        return factory(*args, **keywords)
    except (Exception, SystemExit) as exc:
        # The author's code may raise anything, or end the program; here it is one line.
        given = f"{path}({_shown(args, keywords)})"
        raise ConfigError(f"driver {spec!r}: {given} raised {_one_line(exc)}", driver=spec) from exc


def _import(name: str, spec: str) -> ModuleType:
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as exc:
        # Importing runs the author's code; a script without a main guard may even exit.
        raise ConfigError(
            f"driver {spec!r}: {_why_not_imported(name, exc, folder)}", driver=spec
        ) from exc


def _why_not_imported(name: str, exc: BaseException, folder: str) -> str:
    missing = exc.name if isinstance(exc, ModuleNotFoundError) else None
    if not missing:
        return f"importing {name} raised {_one_line(exc)}"
    if name != missing and not name.startswith(f"{missing}."):
        return f"{name} needs the module {missing!r}, which is not installed for {sys.executable}"
    text = f"no module {missing!r} in {folder} or among the installed packages"
    if name.endswith(".py") or "/" in name or "\\" in name:
        return f"{text}; write a module's name (folder.file), not the path of a file"
    return f"{text}; start labmesh in the folder that holds it, or install it"


def _look_up(module: ModuleType, path: str, spec: str) -> Any:
    found: Any = module
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            where = getattr(found, "__name__", module.__name__)
            names = [each for each in dir(found) if not each.startswith("_")]
            close = get_close_matches(name, names, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"write it like {_EXAMPLE}"
            raise ConfigError(
                f"driver {spec!r}: {where} has no {name!r}; {hint}", driver=spec
            ) from None
    return found


def _shown(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    given = [shortened(repr(each), _ARGUMENT_CHARS) for each in args]
    given += [f"{key}={shortened(repr(value), _ARGUMENT_CHARS)}" for key, value in kwargs.items()]
    return ", ".join(given)


def _one_line(exc: BaseException) -> str:
    text = shortened(" ".join(str(exc).split()), _MESSAGE_CHARS)
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__
