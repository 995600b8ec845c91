"""Does anybody but us have this result? Then its buffers can be sent without a copy.

A driver that returns its own array may write into it again as soon as its method has returned,
while the bytes are still on their way. What nobody else refers to cannot change.
"""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["is_unshared"]


def is_unshared(value: Any) -> bool:
    """Whether only the caller, by one variable, refers to this value and to the buffers in it.

    Looks at numpy arrays and bytes, also one level inside a plain dict, list or tuple. When in
    doubt: False.
    """
    if _owns_its_buffer(value):
        return sys.getrefcount(value) <= _OURS
    kind = type(value)
    if kind not in _CONTAINERS or sys.getrefcount(value) > _OURS:
        return False
    for each in value.values() if kind is dict else value:
        if type(each) in _WITHOUT_BUFFERS:
            continue
        if not _owns_its_buffer(each) or sys.getrefcount(each) > _CONTAINED:
            return False
    return True


_CONTAINERS = frozenset({dict, list, tuple})
#: Immutable, or too small to travel as a buffer.
_WITHOUT_BUFFERS = frozenset({type(None), bool, int, float, complex, str, bytes})


def _owns_its_buffer(value: Any) -> bool:
    kind = type(value)
    if kind.__name__ != "ndarray" or kind.__module__ != "numpy":
        return False
    # An extension may hand out its own memory as an array that names no owner.
    return value.base is None and bool(value.flags.owndata)


def _counted(value: Any) -> int:
    return sys.getrefcount(value)


def _references_of_ours() -> int:
    """How many references a value has that only a variable of its caller refers to.

    Versions of Python differ in what a call adds.
    """
    value = object()
    return _counted(value)


def _references_of_contained() -> int:
    for each in [object()]:
        return sys.getrefcount(each)
    raise AssertionError("unreachable")


_OURS = _references_of_ours()
_CONTAINED = _references_of_contained()
