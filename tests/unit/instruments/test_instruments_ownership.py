"""Whether anybody but its caller has a result: a wrong yes would send torn data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from labmesh.instruments.ownership import is_unshared


def asked_of(make: Callable[[], Any]) -> bool:
    """As the relay asks: one variable has the result."""
    value = make()
    return is_unshared(value)


class Scope:
    """A driver that keeps what it returns, or not."""

    def __init__(self) -> None:
        self.buffer = np.zeros(1000)
        self.views: list[Any] = []
        self.kept: list[Any] = []

    def fresh(self) -> Any:
        return np.zeros(1000)

    def computed(self) -> Any:
        return self.buffer * 2.0

    def copied(self) -> Any:
        return self.buffer.copy()

    def own(self) -> Any:
        return self.buffer

    def view_of_own(self) -> Any:
        return self.buffer[10:]

    def reshaped_own(self) -> Any:
        return self.buffer.reshape(10, 100)

    def view_of_fresh(self) -> Any:
        return np.zeros(1000)[10:]

    def viewed(self) -> Any:
        fresh = np.zeros(1000)
        self.views.append(fresh[10:])
        return fresh

    def exported(self) -> Any:
        fresh = np.zeros(1000)
        self.views.append(memoryview(fresh))  # type: ignore[arg-type]
        return fresh

    def remembered(self) -> Any:
        fresh = np.zeros(1000)
        self.kept.append(fresh)
        return fresh

    def of_foreign_memory(self) -> Any:
        return np.frombuffer(bytearray(1000))

    def fresh_pair(self) -> Any:
        return np.zeros(10), np.ones(10)

    def fresh_list(self) -> Any:
        return [np.zeros(10), 1.5, "V", None, b"raw"]

    def fresh_dict(self) -> Any:
        return {"x": np.zeros(10), "y": np.ones(10), "unit": "V"}

    def own_in_tuple(self) -> Any:
        return self.buffer, 1.5

    def own_in_list(self) -> Any:
        return [self.buffer]

    def own_in_dict(self) -> Any:
        return {"x": np.zeros(10), "y": self.buffer}

    def remembered_dict(self) -> Any:
        fresh = {"x": np.zeros(10)}
        self.kept.append(fresh)
        return fresh

    def remembered_list(self) -> Any:
        fresh = [np.zeros(10)]
        self.kept.append(fresh)
        return fresh

    def the_same_twice(self) -> Any:
        fresh = np.zeros(10)
        return fresh, fresh

    def deeper(self) -> Any:
        return {"channels": {"a": np.zeros(10)}}

    def view_in_tuple(self) -> Any:
        return np.zeros(10)[1:], 1.5

    def own_bytes(self) -> Any:
        return bytearray(1000)

    def subclass(self) -> Any:
        return np.zeros(10).view(np.recarray)

    def number(self) -> Any:
        return np.float64(1.5)

    def set_of_numbers(self) -> Any:
        return {1, 2}


@pytest.mark.parametrize(
    "name", ["fresh", "computed", "copied", "fresh_pair", "fresh_list", "fresh_dict"]
)
def test_what_a_driver_made_for_its_caller_is_unshared(name: str) -> None:
    assert asked_of(getattr(Scope(), name))


@pytest.mark.parametrize(
    "name",
    [
        "own",
        "view_of_own",
        "reshaped_own",
        "view_of_fresh",
        "viewed",
        "exported",
        "remembered",
        "of_foreign_memory",
        "own_in_tuple",
        "own_in_list",
        "own_in_dict",
        "remembered_dict",
        "remembered_list",
        "the_same_twice",
        "deeper",
        "view_in_tuple",
        "own_bytes",
        "subclass",
        "number",
        "set_of_numbers",
    ],
)
def test_what_a_driver_may_still_have_is_shared(name: str) -> None:
    scope = Scope()
    assert not asked_of(getattr(scope, name))


def test_what_a_driver_kept_is_its_own_again_when_nobody_has_it_any_more() -> None:
    scope = Scope()
    value = scope.remembered()
    assert not is_unshared(value)
    scope.kept.clear()
    assert is_unshared(value)


def test_a_second_variable_shares() -> None:
    value = np.zeros(10)
    another = value
    assert not is_unshared(value)
    del another
    assert is_unshared(value)
