"""What a driver raised, as an error that can cross the wire.

Nothing here trusts the exception: its ``__str__`` may raise, its message may be huge or hold what
UTF-8 cannot, and its traceback may have a thousand frames.
"""

from __future__ import annotations

import builtins
from traceback import TracebackException
from types import TracebackType

from labmesh.errors import DriverError, driver_error

__all__ = ["driver_failure", "unsendable_result"]

_MESSAGE_BYTES = 2000
_NAME_BYTES = 128
_TRACEBACK_BYTES = 16 * 1024
#: Innermost frames that are shown; a recursion has a thousand alike.
_FRAMES = 50
#: Frames of these modules at the outer end are how a driver was called, not what it did.
_CALLING_MODULES = (
    "labmesh.serving.served",
    "labmesh.instruments.worker",
    "labmesh.instruments.jobs",
    "labmesh.instruments.async_items",
    "labmesh.instruments.thread_runner",
    "labmesh.instruments.exposure",
    "asyncio.",
)


def driver_failure(exc: BaseException, *, method: str, relay_id: str) -> DriverError:
    """The error for the caller of ``method``, which raised ``exc``.

    It mirrors a builtin exception by its type, with the driver's own message as its text; before
    any other type's message stands the name of that type. Message at most 2 kB, traceback at most
    16 KiB, from the driver's outermost frame to its innermost.
    """
    kind = type(exc)
    message = _message(exc)
    is_builtin = getattr(builtins, kind.__name__, None) is kind
    if not message:
        text = kind.__name__
    elif is_builtin and issubclass(kind, Exception):
        text = message
    else:
        text = f"{kind.__name__}: {message}"
    return driver_error(
        _first(text, _MESSAGE_BYTES),
        {
            "exception_type": kind.__name__ if is_builtin else _qualified_name(kind),
            "remote_traceback": _traceback(exc),
            "method": method,
            "relay_id": relay_id,
        },
    )


def unsendable_result(
    exc: BaseException, value: object, *, method: str, relay_id: str
) -> DriverError:
    """The error for the caller of ``method``, which ran and whose result cannot be encoded."""
    why = _message(exc) or type(exc).__name__
    text = f"{method} ran, but its result ({type(value).__name__}) cannot be sent: {why}"
    return driver_error(
        _first(text, _MESSAGE_BYTES),
        {"exception_type": "ResultNotSerialisable", "method": method, "relay_id": relay_id},
    )


def _qualified_name(kind: type) -> str:
    """With its module, so that it is not taken for a builtin of the same name."""
    return _first(f"{kind.__module__}.{kind.__qualname__}", _NAME_BYTES)


def _message(exc: BaseException) -> str:
    try:
        text = str(exc)
    except BaseException as failure:
        # Code of the driver's author runs in __str__; whatever it does, its caller is answered.
        return f"(its message cannot be shown: __str__ raised {type(failure).__name__})"
    return _first(text, _MESSAGE_BYTES)


def _traceback(exc: BaseException) -> str:
    try:
        shown = TracebackException(
            type(exc), exc, _driver_frames(exc.__traceback__), limit=-_FRAMES, compact=True
        )
        return _last("".join(shown.format()).rstrip(), _TRACEBACK_BYTES)
    except BaseException as failure:
        # Formatting reads attributes of the exception, which are the author's code as well.
        return f"(the traceback cannot be shown: {type(failure).__name__})"


def _driver_frames(frames: TracebackType | None) -> TracebackType | None:
    while frames is not None:
        module = str(frames.tb_frame.f_globals.get("__name__", ""))
        if not module.startswith(_CALLING_MODULES):
            return frames
        frames = frames.tb_next
    return None


def _encode(text: str) -> bytes:
    """UTF-8; lone surrogates, which no message can carry, as escapes."""
    return text.encode("utf-8", "backslashreplace")


def _first(text: str, limit_bytes: int) -> str:
    encoded = _encode(text[:limit_bytes])
    if len(text) <= limit_bytes and len(encoded) <= limit_bytes:
        return encoded.decode()
    return encoded[: limit_bytes - 3].decode("utf-8", "ignore") + "…"


def _last(text: str, limit_bytes: int) -> str:
    encoded = _encode(text[-limit_bytes:])
    if len(text) <= limit_bytes and len(encoded) <= limit_bytes:
        return encoded.decode()
    return "…" + encoded[3 - limit_bytes :].decode("utf-8", "ignore")
