"""The methods of the channels and submodules that an instrument of QCoDeS or PyMeasure holds.

A method of a channel has a name with a dot, ``ch01.ramp``, as its values have. What the channel's
class only has from its framework (``ask``, ``snapshot``, ``add_parameter``, …) is not the
instrument's own, and would be there once for each channel: it is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from msgspec.structs import replace

from labmesh.instruments.marks import marks_of
from labmesh.instruments.members import NAME_CHARS, guarded, is_method, is_public
from labmesh.instruments.methods import Method, read_method
from labmesh.instruments.pymeasure_like import channels_of
from labmesh.instruments.qcodes_like import modules_of

__all__ = ["channel_methods"]

#: What the base class of a framework brings: that of QCoDeS, that of PyMeasure.
_BROUGHT = ("add_parameter", "add_child")


def channel_methods(driver: object) -> dict[str, Method]:
    """The methods of all channels, by name; none: the driver holds no such."""
    whose = type(driver).__name__
    parts = guarded(f"{whose}.channels", lambda: [*modules_of(driver), *channels_of(driver)]) or []
    found: dict[str, Method] = {}
    for prefix, part in parts:
        kind = type(part)
        for name, raw in _own_members(kind).items():
            path = f"{prefix}{name}"
            if not is_public(name) or not is_method(raw) or len(path) > NAME_CHARS:
                continue
            if marks_of(name, kind).hidden:
                continue
            method = guarded(f"{whose}.{path}", partial(read_method, name, raw, part, kind))
            if method is not None:
                found[path] = replace(method, name=path)
    return found


def _own_members(kind: type) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for base in _own_classes(kind):
        for name, raw in vars(base).items():
            found.setdefault(name, raw)
    return found


def _own_classes(kind: type) -> Iterator[type]:
    """A class and its bases, as far as they are not those of its framework."""
    bringing = [base for base in kind.__mro__ if any(each in vars(base) for each in _BROUGHT)]
    framework = set(bringing[-1].__mro__) if bringing else {object}
    # The framework's other bases of channels are in the package of that one.
    packages = {_package(base) for base in bringing[-1:]} - {""}
    for base in kind.__mro__:
        if base not in framework and _package(base) not in packages:
            yield base


def _package(kind: type) -> str:
    return kind.__module__.rpartition(".")[0]
