"""What the sender of a dataset knows of itself."""

from __future__ import annotations

import importlib.metadata
import os
from typing import Any

import msgspec
import pytest

from labmesh.instruments.simulated import PowerSupply
from labmesh.provenance import driver_facts, plain_facts, sender_facts
from labmesh.version import __version__


class Own:
    """A driver that was never installed."""


def test_a_sender_says_who_and_where_it_is() -> None:
    facts = sender_facts()
    assert (facts["pid"], facts["labmesh"]) == (os.getpid(), __version__)
    assert all(isinstance(facts[each], str) for each in ("user", "host", "program", "python"))


def test_an_account_without_a_name_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 4242")

    monkeypatch.setattr("labmesh.provenance.getpass.getuser", nobody)
    assert sender_facts()["user"] == ""


def test_a_driver_has_the_version_of_its_package() -> None:
    facts = driver_facts(PowerSupply)
    assert facts["driver"] == "labmesh.instruments.simulated:PowerSupply"
    assert facts["package"] == "labmesh"
    assert facts["version"] == importlib.metadata.version("labmesh")
    # Its module has another name than the package that it is from.
    assert driver_facts(pytest.MonkeyPatch)["package"] == "pytest"


def test_a_driver_of_ones_own_has_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = driver_facts(Own)
    assert facts["driver"].endswith(":Own")
    assert "package" not in facts

    def broken() -> dict[str, Any]:
        raise RuntimeError("no metadata")

    monkeypatch.setattr("importlib.metadata.packages_distributions", broken)
    assert "package" not in driver_facts(type("Other", (), {"__module__": "nowhere"}))


def test_facts_are_plain_and_of_limited_size() -> None:
    value = {"T": 4.2, 1: (True, None, b"x"), "big": 2**70, "bad": "\ud800", "deep": [[[[]]]]}
    plain = plain_facts(value, 1000)
    assert plain == {
        "T": 4.2,
        "1": [True, None, "b'x'"],
        "big": str(2**70),
        "bad": "?",
        "deep": [[[[]]]],
    }
    msgspec.msgpack.encode(plain)
    assert "too many to be kept" in plain_facts(["x" * 100] * 100, 1000)
    endless: list[Any] = []
    endless.append(endless)
    msgspec.msgpack.encode(plain_facts(endless, 10_000))
