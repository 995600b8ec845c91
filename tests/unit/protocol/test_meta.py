from __future__ import annotations

import datetime
import math
from typing import Any

import numpy as np
import pytest

from labmesh.errors import ProtocolError, TooLarge
from labmesh.protocol.meta import MAX_META_BYTES, check_meta, plain_meta


def nested(depth: int) -> dict[str, Any]:
    meta: dict[str, Any] = {}
    for _ in range(depth):
        meta = {"a": meta}
    return meta


@pytest.mark.parametrize(
    "meta",
    [
        {},
        {"T": 4.2, "n": -(2**63), "m": 2**63 - 1, "on": True, "none": None, "text": "µ\n\x00"},
        {"nan": math.nan, "inf": -math.inf},
        {"list": [1, ["two", {"three": 3}]], "tuple": (1, 2)},
        {"path": "/etc", "\x00\n": "a key is data too", "": 1},
        nested(32),
        {"note": "x" * (MAX_META_BYTES - 20)},
    ],
)
def test_plain_values_are_taken(meta: dict[str, Any]) -> None:
    check_meta(meta)


@pytest.mark.parametrize(
    ("meta", "place"),
    [
        ({"raw": b"\0"}, r"meta\['raw'\] is a bytes"),
        ({"when": datetime.datetime(2024, 1, 1)}, r"meta\['when'\] is a datetime"),
        ({"z": [0, 1j]}, r"meta\['z'\]\[1\] is a complex"),
        ({"a": {"b": {1, 2}}}, r"meta\['a'\]\['b'\] is a set"),
        ({"a": {1: 2}}, r"meta\['a'\] has a key that is not text"),
        ({"big": 2**63}, r"meta\['big'\] is an integer of more than 64 bits"),
        ({"big": [-(2**63) - 1]}, r"meta\['big'\]\[0\] is an integer"),
        ({"huge": 2**70}, r"meta\['huge'\] is an integer"),
        (nested(33), "nested deeper than 32"),
        (nested(100_000), "nested deeper than 32"),
        ({"text": "\ud800"}, "not valid Unicode"),
        ({"\ud800": 1}, "not valid Unicode"),
    ],
)
def test_what_is_not_plain_is_refused_by_its_place(meta: dict[str, Any], place: str) -> None:
    with pytest.raises(ProtocolError, match=place):
        check_meta(meta)


def test_the_limit_is_named() -> None:
    with pytest.raises(TooLarge, match=f"limit of {MAX_META_BYTES}"):
        check_meta({"note": "x" * MAX_META_BYTES})
    with pytest.raises(TooLarge, match="limit of 10"):
        check_meta({"note": "0123456789"}, max_bytes=10)


def test_a_sender_makes_plain_values_of_numpys_scalars() -> None:
    meta = {"T": np.float64(4.2), "n": [np.int32(3), {"on": np.bool_(True)}], "s": (np.str_("µ"),)}
    plain = plain_meta(meta)
    assert plain == {"T": 4.2, "n": [3, {"on": True}], "s": ["µ"]}
    assert type(plain["T"]) is float
    for wrong, place in (
        ({"when": np.datetime64("2026-01-01")}, r"meta\['when'\] is a date"),
        ({"trace": np.zeros(2)}, r"meta\['trace'\] is a ndarray"),
        (nested(33), "nested deeper than 32"),
        (nested(100_000), "nested deeper than 32"),
        ({"note": "x" * MAX_META_BYTES}, "over the limit"),
    ):
        with pytest.raises((ProtocolError, TooLarge), match=place):
            plain_meta(wrong)
