"""Bad messages about calls, batches, streams and leases; none of it may reach the driver."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.support.bad_case import BAD, Case, nested, request

__all__ = ["calls_and_leases"]

_SESSION = {"session": "0123456789abcdef"}
_GOOD = ["set_voltage", [1.0]]
_NAN, _INF = float("nan"), float("inf")


def calls_and_leases() -> Iterator[Case]:
    """What a relay must refuse beside bad calls."""
    yield from _fields()
    yield from _ids()
    yield from _values()
    yield from _batches()
    yield from _streams()
    yield from _questions()
    yield from _leases()


def _fields() -> Iterator[Case]:
    call = {"method": "set_voltage", "args": [1.0]}
    for value in (-1, 2**60, True, 1.5, "1", None, [1]):
        yield Case("I42", f"call, fence {value!r}", request("call", **call, fence=value), BAD)
        yield Case("I42", f"batch, fence {value!r}", _batch([_GOOD], fence=value), BAD)
    yield Case("I42", "call, fence that nobody has", request("call", **call, fence=7), (423,))
    held = request("call", **call, **_SESSION, fence=2**53)
    yield Case("I42", "call, fence that nobody has yet", held, (423,))
    yield Case("I42", "batch, fence that nobody has", _batch([_GOOD], fence=7), (423,))
    for value in ("x" * 10_000, "x" * 65, None, 3, ["s"], b"0123456789abcdef"):
        shown = f"session {value!r:.20}"
        yield Case("I14", f"call, {shown}", request("call", **call, session=value), BAD)
        yield Case("I14", f"get_call, {shown}", request("get_call", call="1", session=value), BAD)
        yield Case("I14", f"acquire, {shown}", request("acquire", session=value), BAD)


def _ids() -> Iterator[Case]:
    """With a session ids are numbers, so that the relay can tell which are too old."""
    call = {"method": "set_voltage", "args": [1.0], **_SESSION}
    for value in ("abc", "-1", "1.5", " 7", "0x7", "\uff17", "9" * 20, "9" * 64, "\u00b2"):
        yield Case("I14", f"session, id {value!r:.20}", request("call", **call, id=value), BAD)
        yield Case("I14", f"batch, id {value!r:.20}", _batch([_GOOD], **_SESSION, id=value), BAD)
        asked = request("get_call", **_SESSION, call=value)
        yield Case("I45", f"get_call of {value!r:.20}", asked, BAD)


def _values() -> Iterator[Case]:
    for access in ("delete", "", "CALL", None, 3, ["get"], True):
        yield Case("I39", f"access {access!r}", _call("voltage", access=access), BAD)
    for name in ("", "_secret", "__class__", "__dict__", "calls", "voltage", "a.b", "x" * 200):
        yield Case("I39", f"get {name!r:.20}", _call(name, access="get"), (404,))
        yield Case("I39", f"set {name!r:.20}", _call(name, access="set", args=[1]), (404,))
    yield Case("I39", "get of a method", _call("set_voltage", access="get"), (400, 404))
    yield Case("I39", "set of a method", _call("set_voltage", access="set", args=[1]), (400, 404))


def _batches() -> Iterator[Case]:
    yield Case("I40", "batch without calls", request("batch"), BAD)
    for calls in (None, 3, "set_voltage", {"calls": []}, True):
        yield Case("I40", f"batch of {calls!r}", _batch(calls), BAD)
    for entry in _BAD_ENTRIES:
        # The good one before it must not run either.
        yield Case("I40", f"batch, entry {entry!r:.30}", _batch([_GOOD, entry]), BAD)
        going = _batch([_GOOD, entry], keep_going=True)
        yield Case("I40", f"batch that goes on, entry {entry!r:.20}", going, BAD)
    for name in ("", "_secret", "__class__", "voltage", "mro", "x" * 256):
        unknown = _batch([_GOOD, [name]])
        yield Case("I39", f"batch, method {name!r:.20}", unknown, (404,))
    for arguments in ([[]], [[1, 2]], [[], {"self": 1}], [[1], {"value": 1}], [[1], {"extra": 2}]):
        misfit = _batch([_GOOD, ["set_voltage", *arguments]])
        yield Case("I40", f"batch, arguments {arguments!r:.30}", misfit, BAD)
    for value in (1, "true", None):
        yield Case("I40", f"keep_going {value!r}", _batch([_GOOD], keep_going=value), BAD)
    yield Case("I40", "batch of 257", _batch([_GOOD] * 257), BAD)
    yield Case("I40", "batch of 100,000", _batch([["x"]] * 100_000), BAD)
    yield Case("I40", "batch of 100,000 that are none", _batch([1] * 100_000), BAD)
    large = _batch([[_GOOD[0], [1] * 5000]] * 240)
    yield Case("I40", "batch of 1.2 MB", large, (413,))
    yield Case("I7", "batch 40 deep", _batch(nested(40)), (400, 413))
    late = _batch([_GOOD], deadline=0.0)
    yield Case("I41", "batch whose deadline has passed", late, (408,))
    for value in (_NAN, _INF, "5", [1]):
        yield Case("I41", f"batch, deadline {value!r}", _batch([_GOOD], deadline=value), BAD)


_BAD_ENTRIES: tuple[Any, ...] = (
    None,
    3,
    "set_voltage",
    {"method": "set_voltage"},
    [],
    [None],
    [3],
    [["set_voltage"]],
    ["x" * 257],
    ["set_voltage", None],
    ["set_voltage", "x"],
    ["set_voltage", {"value": 1}],
    ["set_voltage", [1], [1]],
    ["set_voltage", [1], None],
    ["set_voltage", [1], {1: 2}],
    ["set_voltage", [1], {}, "delete"],
    ["set_voltage", [1], {}, None],
    ["set_voltage", [1], {}, ["call"]],
    ["set_voltage", [1], {}, "call", "more"],
)


def _streams() -> Iterator[Case]:
    for credit in (-1, 10**9, 1025, True, 1.5, "16", None):
        counted = _call("set_voltage", args=[1.0], credit=credit)
        yield Case("I55", f"call, credit {credit!r}", counted, BAD)
    yield Case("I55", "a method that yields, credit 0", _call("numbers"), BAD)
    yield Case("I55", "a method that yields, in a batch", _batch([_GOOD, ["numbers"]]), BAD)
    for credit in (-1, 0, 10**9, 1025, True, 1.5, "16", None):
        yield Case("I55", f"more, credit {credit!r}", request("more", call="1", credit=credit), BAD)
    yield Case("I55", "more without credit", request("more", call="1"), BAD)
    for call in ("", "x" * 65, None, 3, ["1"]):
        yield Case("I45", f"more for {call!r:.20}", request("more", call=call, credit=1), BAD)
    for fields in ({}, _SESSION):
        unknown = request("more", call="99", credit=1, **fields)
        yield Case("I45", f"more for an unknown call, {len(fields)}", unknown, (404,))


def _questions() -> Iterator[Case]:
    for kind in ("get_call", "cancel"):
        for call in ("", "x" * 65, None, 3, ["1"]):
            yield Case("I45", f"{kind} of {call!r:.20}", request(kind, call=call), BAD)
    for age in (-1, _NAN, _INF, "1", None, [1]):
        asked = request("get_call", call="1", age_s=age, **_SESSION)
        yield Case("I45", f"get_call, {age!r} s ago", asked, BAD)
    never = request("get_call", call="4", **_SESSION)
    yield Case("I45", "get_call of what never came", never, (0,))
    late = _call("set_voltage", args=[1.0], **_SESSION, id="4")
    yield Case("I45", "a call that was asked about before it came", late, (499,))
    yield Case("I45", "cancel, session", request("cancel", call="99", **_SESSION), (404,))


def _leases() -> Iterator[Case]:
    for ttl in (0, -1, -0.0, _NAN, _INF, 1e9, 86_401, "10", True, None, [10]):
        yield Case("I42", f"ttl {ttl!r}", request("acquire", **_SESSION, ttl_s=ttl), BAD)
    for field in ("note", "holder"):
        for text in ("x" * 1_000_000, "x" * 257, None, 3, ["x"]):
            taken = request("acquire", **_SESSION, **{field: text})
            yield Case("I42", f"{field} {text!r:.20}", taken, (400, 413))
    for kind in ("renew", "release"):
        yield Case("I42", f"{kind} without a fence", request(kind, **_SESSION), BAD)
        for fence in (0, -1, 2**60, True, 1.5, "1", None):
            wrong = request(kind, **_SESSION, fence=fence)
            yield Case("I42", f"{kind}, fence {fence!r}", wrong, BAD)
    yield Case(
        "I42", "renew of a lease that is none", request("renew", **_SESSION, fence=7), (423,)
    )
    yield Case("I42", "release of one that is none", request("release", **_SESSION, fence=7), (0,))
    for value in (1, "yes", None):
        wrong = request("release", **_SESSION, fence=7, abandoned=value)
        yield Case("I42", f"abandoned {value!r}", wrong, BAD)
    for fence in (-1, 2**60, True, 1.5, "1", None):
        yield Case("I42", f"break_lease, {fence!r}", request("break_lease", fence=fence), BAD)
    for field in ("reason", "by"):
        for text in ("x" * 1_000_000, "x" * 257, None, 3):
            wrong = request("break_lease", **{field: text})
            yield Case("I42", f"break_lease, {field} {text!r:.20}", wrong, (400, 413))
    for fence in (0, 7):
        none = request("break_lease", **_SESSION, fence=fence)
        yield Case("I42", f"break_lease where there is none, {fence}", none, (404,))


def _call(method: str, **fields: Any) -> list[bytes]:
    return request("call", method=method, **fields)


def _batch(calls: Any, **fields: Any) -> list[bytes]:
    return request("batch", calls=calls, **fields)
