"""The driver of the how-to, as it stands there, does what the how-to says."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from labmesh import RelayClient
from labmesh.errors import UnknownMethod
from labmesh.protocol.messages import ValueInfo, ValueLimits
from labmesh.testing import LocalMesh

HOWTO = Path(__file__).parents[2] / "docs" / "howto-driver.md"
VOLTS = ValueLimits(unit="V", lowest=0, highest=30)


@pytest.fixture
def supply() -> Any:
    block = re.search(r"```python\n(.*?)```", HOWTO.read_text(encoding="utf-8"), re.S)
    assert block is not None
    names: dict[str, Any] = {"__name__": "howto"}
    exec(compile(block[1], str(HOWTO), "exec"), names)
    return names["Supply"]()


@pytest.fixture
async def relay(supply: Any) -> AsyncIterator[RelayClient]:
    async with LocalMesh({"psu": supply}, in_memory=True) as mesh:
        client = await mesh.client()
        yield await client.get_relay_agent("psu")


async def test_what_is_said_is_told(relay: RelayClient) -> None:
    description = await relay.describe()
    assert description.values == [
        ValueInfo(
            name="voltage",
            doc="The output voltage.",
            type="float",
            settable=True,
            idempotent=True,
            limits=VOLTS,
        )
    ]
    methods = {each.name: each for each in description.methods}
    assert set(methods) == {"measure", "poll", "safe_state", "sweep"}
    measure = methods["measure"]
    assert (measure.read_only, measure.idempotent, measure.timeout_s) == (True, False, 10.0)
    assert measure.limits == {
        "mode": ValueLimits(choices=["'fast'", "'exact'"]),
        "return": ValueLimits(unit="V"),
    }
    assert methods["sweep"].yields
    assert methods["sweep"].limits == {"start": VOLTS, "stop": VOLTS}


async def test_values_are_read_and_set(relay: RelayClient) -> None:
    await relay.set("voltage", 2.5)
    assert await relay.get("voltage") == 2.5
    assert await relay.measure() == 2.5
    with pytest.raises(ValueError, match="31 V is outside 0 to 30 V"):
        await relay.set("voltage", 31)


async def test_a_method_that_yields_sends_its_values_one_by_one(relay: RelayClient) -> None:
    points = [tuple(point) async for point in relay.stream("sweep", [0, 5, 3])]
    assert points == [(0.0, 0.0), (2.5, 2.5), (5.0, 5.0)]


async def test_what_is_hidden_cannot_be_called(relay: RelayClient) -> None:
    with pytest.raises(UnknownMethod, match="Supply has no method 'calibrate'"):
        await relay.calibrate()
