"""The last states of a mesh, for the provenance of datasets: which settings was this taken with?"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from labmesh.errors import LabmeshError, ProtocolError
from labmesh.protocol.codec import decode_event, decode_value
from labmesh.protocol.messages import LastEvent, LastEvents, ListLast

__all__ = ["LastStates"]

States = dict[str, Any]

#: States that were asked for so short a time ago are those of now.
_FRESH_S = 0.1
#: After a broker that did not answer, the next one that is asked for is not waited for.
_RESIGNED_S = 5.0
_RELAY_BYTES = 64 * 2**10
#: Both moments of a record, with its meta, fit one message.
_ALL_BYTES = 256 * 2**10
#: What each relay takes beside its id and its value, and each list and map beside its content.
_ENTRY_BYTES, _NESTED_BYTES = 64, 8
_TEXT_CHARS = 200
#: What is said of the rest; no relay can have this id.
_REST = "(more)"
_PREFIX = "state."
_DEEPEST = 16


class LastStates:
    """Asks the broker for the last state of every relay; never long, and it never fails.

    :param ask: one request to the broker; it raises when the broker is away, or does not answer
        soon.
    """

    def __init__(self, ask: Callable[[ListLast], Awaitable[LastEvents]]) -> None:
        self._ask = ask
        self._asking: asyncio.Task[tuple[States, str]] | None = None
        self._known: tuple[States, str] = {}, ""
        self._known_at = -math.inf
        self._resigned_until = -math.inf

    async def now(self) -> tuple[States, str]:
        """Relay id → ``{"time": POSIX seconds, "value": its state}``; and why there are none.

        Those that found no room are counted at the end, under ``(more)``.
        """
        if time.monotonic() < self._known_at + _FRESH_S:
            return self._known
        if time.monotonic() < self._resigned_until:
            return {}, self._known[1]
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(
                self._collect(), name="last states"
            )
        return await asyncio.shield(self._asking)

    async def close(self) -> None:
        """End what is under way."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def _collect(self) -> tuple[States, str]:
        room, missing, after = _Room(), "", ""
        try:
            while True:
                page = await self._ask(ListLast(id="-", prefix=_PREFIX, after=after))
                for event in page.events:
                    room.add(event)
                if not page.more or not page.events:
                    break
                after = page.events[-1].topic
        except LabmeshError as exc:
            room, missing = _Room(), str(exc)
            self._resigned_until = time.monotonic() + _RESIGNED_S
        self._known, self._known_at = (room.states(), missing), time.monotonic()
        return self._known


class _Room:
    """States as any program can read them from a JSON file, as many as a record has room for."""

    def __init__(self) -> None:
        self._states: States = {}
        self._left = _ALL_BYTES
        self._more = 0

    def add(self, event: LastEvent) -> None:
        relay_id = event.topic.removeprefix(_PREFIX)
        left = self._left - _ENTRY_BYTES - len(relay_id)
        state, size = _readable(event, left)
        if size > left:
            self._more += 1
        else:
            self._states[relay_id] = state
            self._left = left - size

    def states(self) -> States:
        if not self._more:
            return self._states
        return {**self._states, _REST: {"value": f"and {self._more:,} more"}}


def _readable(event: LastEvent, left: int) -> tuple[dict[str, Any], int]:
    """A state with its time, or a text in its place; and how many bytes that takes."""
    size = len(event.payload)
    most = min(_RELAY_BYTES, left)
    try:
        at = decode_event(event.header).time
        if size <= most:
            value = _plain(decode_value(event.payload), 0)
            taken = _size(value, size)
            if taken <= most:
                return {"time": at, "value": value}, taken
    except ProtocolError as exc:
        text = f"cannot be read: {exc}"[:_TEXT_CHARS]
        return {"value": text}, len(text)
    text = f"left out: a state of {size} bytes"
    return {"time": at, "value": text}, len(text)


def _size(value: object, payload_bytes: int) -> int:
    """What a plain value takes at most, as JSON and as MessagePack.

    It may be many times its payload: there are texts in it for what JSON has no word for.
    """
    text = msgspec.json.encode(value)
    nested = text.count(b"{") + text.count(b"[")
    return max(len(text), payload_bytes) + _NESTED_BYTES * nested


def _plain(value: object, depth: int) -> Any:
    """Text, numbers, booleans, None, lists and dicts as they are; a text for everything else."""
    if depth > _DEEPEST:
        return "left out: nested too deeply"
    match value:
        case None | bool() | str():
            return value
        case int() if -(2**63) <= value < 2**63:
            return value
        case float() if math.isfinite(value):
            return value
        case dict():
            return {str(key): _plain(inner, depth + 1) for key, inner in value.items()}
        case list() | tuple():
            return [_plain(inner, depth + 1) for inner in value]
        case bytes() | bytearray() | memoryview():
            return f"left out: {len(value)} bytes"
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"left out: an array of {dtype}, shape {tuple(shape)}"
    return str(msgspec.to_builtins(value, enc_hook=str))
