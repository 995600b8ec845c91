"""What a node's constructor is given is checked there, not when it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from labmesh import DataBank, DirectorClientAgent, DirectoryBroker, RelayAgent
from labmesh.errors import ProtocolError
from labmesh.instruments.simulated import Thermometer

MAKERS: dict[str, Callable[[Any], object]] = {
    "ttl_seconds": lambda value: DirectoryBroker(ttl_seconds=value),
    "state_interval": lambda value: RelayAgent("Inst-0", Thermometer(), state_interval=value),
    "heartbeat of a relay": lambda value: RelayAgent(
        "Inst-0", Thermometer(), heartbeat_seconds=value
    ),
    "heartbeat of a bank": lambda value: DataBank(heartbeat_sec=value),
    "call_limit": lambda value: DirectorClientAgent(call_limit=value),
}


@pytest.mark.parametrize("what", MAKERS)
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "3", None, True])
def test_a_duration_is_a_finite_number_above_0(what: str, value: Any) -> None:
    with pytest.raises(ValueError, match="a number of seconds above 0") as refused:
        MAKERS[what](value)
    assert repr(value) in str(refused.value)


@pytest.mark.parametrize("what", MAKERS)
def test_whole_and_broken_numbers_of_seconds_are_taken(what: str) -> None:
    MAKERS[what](1)
    MAKERS[what](0.25)


@pytest.mark.parametrize("host", ["tcp://1.2.3.4:5", "*", "", "two words"])
def test_the_address_to_advertise_is_a_host(host: str) -> None:
    with pytest.raises(ProtocolError, match="local_address"):
        RelayAgent("Inst-0", Thermometer(), local_address=host)
