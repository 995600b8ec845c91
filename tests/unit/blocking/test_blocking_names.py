"""What a script is told that asks for a name which its instrument does not have as such."""

from __future__ import annotations

import pytest

from labmesh.blocking.methods import Driver
from labmesh.blocking.names import unknown
from labmesh.protocol.messages import Description, MethodInfo, ValueInfo


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("ch01", "a part with values of its own: read them as get('ch01.voltage')"),
        ("switch", "a part with methods of its own: call them as call('switch.open', ...)"),
        ("swich", "no method or value 'swich'"),
    ],
)
def test_a_part_of_an_instrument_is_reached_by_whole_names(name: str, told: str) -> None:
    description = Description(
        id="1",
        node_id="dac-1",
        epoch="e",
        driver="DAC",
        methods=[MethodInfo(name="ch01.ramp"), MethodInfo(name="switch.open")],
        values=[ValueInfo(name="ch01.voltage")],
    )
    assert told in str(unknown(Driver.of(description), "dac-1", name))
