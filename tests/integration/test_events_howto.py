"""The functions and the driver of the how-to about events do what it says."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

from tests.support.hearing import Heard
from tests.support.peers import until

from labmesh.cli.app import app
from labmesh.config import load_config
from labmesh.protocol.driver_events import RESERVED
from labmesh.protocol.event_frame import MAX_EVENT_BYTES
from labmesh.testing import LocalMesh, ScriptedInstrument

HOWTO = (Path(__file__).parents[2] / "docs" / "howto-events.md").read_text(encoding="utf-8")


def names_of_the_howto() -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "howto"}
    for block in re.findall(r"```python\n(.*?)```", HOWTO, re.DOTALL):
        exec(compile(block, "howto-events.md", "exec"), names)
    return names


async def test_the_howto(tmp_path: Path) -> None:
    names = names_of_the_howto()
    drivers = {
        "psu-1": ScriptedInstrument(poll={"voltage": 1.0}),
        "psu-10": ScriptedInstrument(poll={"voltage": 10.0}),
        "furnace-1": names["Furnace"](),
    }
    async with LocalMesh(drivers, banks=1, in_memory=True, state_interval=0.02) as mesh:
        voltages = await asyncio.to_thread(names["watch_supplies"], mesh.address, 6)
        assert len(voltages) == 6
        assert set(voltages) <= {1.0, 10.0}
        client = await mesh.client()
        assert await names["first_reading"](client) == {"voltage": 1.0}
        states: list[Any] = []
        gaps: list[Any] = []
        alarms: list[Any] = []
        handles = names["listen"](client, states, gaps)
        names["tell_alarms"](client, alarms)
        heard = Heard()
        client.on_event(heard, "furnace-1")
        await client.subscribed()
        furnace = await client.get_relay_agent("furnace-1")
        assert await furnace.heat(1020) == 1020
        assert await heard.count(5) == [
            *(("furnace-1", "progress", step / 4) for step in range(1, 5)),
            ("furnace-1", "alarm", "1020 degrees"),
        ]
        await until(lambda: alarms and len(states) > 2)
        assert alarms == [("furnace-1", "1020 degrees")]
        assert {each["voltage"] for each in states} == {1.0}
        assert gaps == []
        for each in handles:
            each.cancel()
        bank = await client.get_databank_agent()
        for name in ("before", "after"):
            await bank.upload(name.encode(), dataset_id=name)
            keeping = names["keep_copies"](client, tmp_path)
            await until((tmp_path / f"{name}.bin").exists)
            await until(lambda: "handing" not in (tmp_path / "cursor.json").read_text())
            keeping.cancel()
            await keeping.closed()


def test_it_names_what_is_refused() -> None:
    text = " ".join(HOWTO.split())
    (names,) = re.findall(r"begins with a letter\. (.+?) are what the relay itself says", text)
    assert set(re.findall(r"`(\w+)`", names)) == RESERVED
    assert f"A value has at most {MAX_EVENT_BYTES // 1024} KiB" in text


def test_its_configuration_and_commands_exist(tmp_path: Path) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", HOWTO, re.DOTALL)
    file = tmp_path / "labmesh.toml"
    file.write_text(block, encoding="utf-8")
    table = load_config(file).relay
    assert (table.publish, table.keep_alive, table.log_level) == ("change", 10, "info")
    commands = re.findall(r"^\$ labmesh (.+)$", HOWTO, re.MULTILINE)
    assert len(commands) == 3
    for line in commands:
        _, bound, unused = app.parse_args(
            line.replace("'", "").split(), exit_on_error=False, print_error=False
        )[:3]
        assert not unused
        assert bound is not None
