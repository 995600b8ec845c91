from __future__ import annotations

import pytest
from tests.support.records import bank, relay

from labmesh.errors import ProtocolError
from labmesh.protocol.messages import NodeRecord
from labmesh.protocol.records import checked


def test_a_record_of_use_keeps_all_that_it_says() -> None:
    for record in (relay(title="PowerSupply", state="suspect"), bank(software="labmesh 0.1.0")):
        assert checked(record) == record


def test_endpoints_get_the_one_spelling_by_which_they_are_compared() -> None:
    record = relay(endpoint="tcp://LAB-3.example.org:5801")
    assert checked(record).endpoints == {"rpc": "tcp://lab-3.example.org:5801"}


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (relay("con"), "relay_id 'con' is a Windows device name"),
        (relay(endpoints={}), "does not say where its rpc socket is"),
        (bank(endpoints={}), "where its ingest and retrieve socket is"),
        (bank(endpoints={"ingest": "tcp://10.0.0.9:5900"}), "where its retrieve socket is"),
        (relay(endpoints={"rpc": "tcp://10.0.0.3:5801", "a/b": "tcp://10.0.0.3:1"}), "endpoint"),
        (relay(endpoint="file:///etc/passwd"), "address"),
        (relay(endpoint="inproc://zeromq.zap.01"), "address"),
        (relay(endpoint="tcp://10.0.0.3:0"), "port"),
        (relay(endpoint="tcp://*:5801"), "address"),
    ],
)
def test_a_record_of_no_use_is_refused(record: NodeRecord, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        checked(record)
