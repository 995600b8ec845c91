"""Properties of a driver, read and written over the network."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from typing import Annotated

import numpy as np
import pytest
from msgspec import Meta

from labmesh import RelayClient, expose, hidden
from labmesh.errors import BadArguments, DriverError, UnknownMethod
from labmesh.protocol.messages import ValueInfo, ValueLimits
from labmesh.testing import LocalMesh


class Supply:
    """A power supply."""

    def __init__(self) -> None:
        self.settings: list[float] = []
        self.threads: set[str] = set()

    @property
    def voltage(self) -> Annotated[float, "V", Meta(ge=0, le=30)]:
        """The output voltage."""
        self.threads.add(threading.current_thread().name)
        return self.settings[-1] if self.settings else 0.0

    @voltage.setter
    def voltage(self, value: float) -> None:
        self.threads.add(threading.current_thread().name)
        if not 0 <= value <= 30:
            raise ValueError(f"{value} V is outside 0 to 30 V")
        self.settings.append(value)

    @property
    def trace(self) -> np.ndarray:
        return np.arange(1000.0)

    @property
    @hidden
    def secret(self) -> str:
        return "not told"

    @expose(read_only=True)
    def measure(self, points: Annotated[int, Meta(ge=1)] = 1) -> Annotated[float, "V"]:
        """The voltage at the load."""
        return self.voltage * points

    @hidden
    def calibrate(self) -> None: ...


@pytest.fixture
def supply() -> Supply:
    return Supply()


@pytest.fixture
async def relay(supply: Supply) -> AsyncIterator[RelayClient]:
    async with LocalMesh({"psu": supply}, in_memory=True) as mesh:
        client = await mesh.client()
        yield await client.get_relay_agent("psu")


async def test_a_value_is_set_and_read_in_the_drivers_thread(
    relay: RelayClient, supply: Supply
) -> None:
    assert await relay.set("voltage", 2.5) is None
    assert supply.settings == [2.5]
    assert await relay.get("voltage") == 2.5
    assert len(supply.threads) == 1
    assert threading.current_thread().name not in supply.threads


async def test_an_array_is_a_value_as_any_other(relay: RelayClient) -> None:
    np.testing.assert_array_equal(await relay.get("trace"), np.arange(1000.0))


async def test_what_the_setter_raises_is_raised_here(relay: RelayClient, supply: Supply) -> None:
    with pytest.raises(ValueError, match="31 V is outside 0 to 30 V") as caught:
        await relay.set("voltage", 31)
    assert isinstance(caught.value, DriverError)
    assert supply.settings == []


async def test_values_are_described_with_units_and_limits(
    relay: RelayClient, supply: Supply
) -> None:
    description = await relay.describe()
    assert description.values == [
        ValueInfo(name="trace", type="numpy.ndarray"),
        ValueInfo(
            name="voltage",
            doc="The output voltage.",
            type="float",
            settable=True,
            limits=ValueLimits(unit="V", lowest=0, highest=30),
        ),
    ]
    assert supply.threads == set(), "nobody has read a value for it"
    [measure] = description.methods
    assert (measure.name, measure.read_only) == ("measure", True)
    assert measure.limits == {
        "points": ValueLimits(lowest=1),
        "return": ValueLimits(unit="V"),
    }


@pytest.mark.parametrize("name", ["secret", "_settings", "settings", "calibrate", "nothing"])
async def test_what_is_no_value_cannot_be_read(relay: RelayClient, name: str) -> None:
    with pytest.raises(UnknownMethod, match="Supply has no value"):
        await relay.get(name)


async def test_the_wrong_way_to_reach_something_is_told_the_right_one(relay: RelayClient) -> None:
    with pytest.raises(UnknownMethod, match=r"read it as \.voltage or with get\('voltage'\)"):
        await relay.call("voltage")
    with pytest.raises(UnknownMethod, match=r"is a method, not a value: call it, as measure"):
        await relay.get("measure")
    with pytest.raises(UnknownMethod, match=r"Supply\.trace can be read and not set"):
        await relay.set("trace", 1)
    with pytest.raises(UnknownMethod, match="has no method 'calibrate'"):
        await relay.call("calibrate")
    with pytest.raises(BadArguments, match="'points' is given twice"):
        await relay.invoke("measure", [1], {"points": 2})
