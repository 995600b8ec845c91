"""The driver of the how-to, as it stands there, does what the how-to says."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from labmesh import RelayClient
from labmesh.config import load_config
from labmesh.errors import UnknownMethod
from labmesh.protocol.messages import ValueInfo, ValueLimits
from labmesh.testing import LocalMesh

HOWTO = Path(__file__).parents[2] / "docs" / "howto-driver.md"
VOLTS = ValueLimits(unit="V", lowest=0, highest=30)


def driver_of(name: str) -> Any:
    """The driver of this name, as the how-to writes it."""
    names: dict[str, Any] = {"__name__": "howto"}
    for block in re.findall(r"```python\n(.*?)```", HOWTO.read_text(encoding="utf-8"), re.S):
        exec(compile(block, str(HOWTO), "exec"), names)
    return names[name]()


@pytest.fixture
def supply() -> Any:
    return driver_of("Supply")


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


@pytest.mark.parametrize("spool", [True, False], ids=["spool", "straight"])
async def test_results_that_are_datasets_get_to_a_bank(spool: bool, tmp_path: Path) -> None:
    folder = tmp_path / "spool" if spool else None
    async with LocalMesh(in_memory=True) as mesh:
        relay = await mesh.start_relay("Cam-0", driver_of("Camera"), spool_dir=folder)
        client = await mesh.client()
        camera = await client.get_relay_agent("Cam-0")
        picture, film = await camera.picture(exposure=0.5), await camera.film(3)
        await relay.drain()
        bank = await client.get_databank_agent("bank-0")
        assert len(await bank.read(film)) == 3 * 640 * 480
        record = await bank.show(picture)
        assert (record.name, record.meta, record.relay_id) == (
            "picture",
            {"exposure": 0.5},
            "Cam-0",
        )


def test_the_spool_of_the_howto_is_configuration(tmp_path: Path) -> None:
    block = re.search(r"```toml\n(.*?)```", HOWTO.read_text(encoding="utf-8"), re.S)
    assert block is not None
    file = tmp_path / "labmesh.toml"
    file.write_text(block[1], encoding="utf-8")
    table = load_config(file).relay
    assert (table.spool_dir, table.spool_limit) == ("./spool", "10 GB")
