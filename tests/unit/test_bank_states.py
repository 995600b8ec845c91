"""The states in a record of where a dataset is from: whatever relays publish, it can be read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from labmesh.errors import LinkLost
from labmesh.keeping.bank_states import LastStates
from labmesh.protocol.codec import Codec, encode_event, encode_value
from labmesh.protocol.event_frame import joined
from labmesh.protocol.events import LastValues
from labmesh.protocol.messages import (
    REPLIES,
    Committed,
    DatasetRecord,
    Event,
    LastEvents,
    ListLast,
)

MOMENT_BYTES = 256 * 2**10
MANY = 9900


class Memory:
    """A broker's memory of last states, and its answers."""

    def __init__(self, states: dict[str, bytes]) -> None:
        self._last = LastValues()
        for relay_id, payload in states.items():
            header = encode_event(Event(publisher=relay_id, epoch="e1", sequence=1, time=1.7e9))
            topic = f"state.{relay_id}".encode()
            self._last.keep(topic, joined(topic, header, payload))

    async def ask(self, request: ListLast) -> LastEvents:
        events, more = self._last.page(request.prefix, request.after)
        return LastEvents(id="-", events=events, more=more)


def nested(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = [value]
    return value


LISTS = encode_value([[]] * 9000)
PAYLOADS: dict[str, dict[str, bytes]] = {
    "many tiny ones": {f"psu-{number:04}" + "x" * 110: encode_value({}) for number in range(MANY)},
    "short ids": {f"{number}": b"\xc0" for number in range(MANY)},
    "unreadable": {f"psu-{number}": b"\xc1" for number in range(MANY)},
    "too large": {f"psu-{number}": encode_value(bytes(70_000)) for number in range(900)},
    "lists alone": {f"psu-{number}": LISTS for number in range(50)},
    "bytes in words": {f"psu-{number}": encode_value([b""] * 9000) for number in range(50)},
    "too deep": {f"p{number}": encode_value(nested([1] * 5000, 16)) for number in range(90)},
    "control characters": {f"p{number}": encode_value("\0" * 60_000) for number in range(90)},
}


@pytest.mark.parametrize("what", PAYLOADS)
async def test_whatever_relays_publish_the_record_can_be_read(what: str) -> None:
    payloads = PAYLOADS[what]
    states, missing = await LastStates(Memory(payloads).ask).now()
    assert missing == ""
    assert len(json.dumps(states, ensure_ascii=False)) < 1.1 * MOMENT_BYTES
    more = states.pop("(more)", {"value": "and 0 more"})["value"].split()
    assert len(states) + int(more[1].replace(",", "")) == len(payloads)
    assert more[1] == f"{len(payloads) - len(states):,}"
    record = DatasetRecord(
        dataset_id="d",
        size=1,
        sha256="0" * 64,
        bank_id="bank-0",
        provenance={"states_at_start": states, "states_at_commit": states},
    )
    codec = Codec(REPLIES)
    assert codec.decode(codec.encode(Committed(id="1", record=record))).message.record == record


async def test_states_are_kept_with_their_time_as_far_as_they_fit() -> None:
    states, missing = await LastStates(
        Memory(
            {
                "Inst-0": encode_value({"voltage": 2.5, "trace": b"xyz"}),
                "Inst-1": encode_value("x" * 70_000),
                "Inst-2": encode_value("\0" * 60_000),
                "Inst-3": b"\xc1",
            }
        ).ask
    ).now()
    assert missing == ""
    assert states["Inst-0"] == {
        "time": 1.7e9,
        "value": {"voltage": 2.5, "trace": "left out: 3 bytes"},
    }
    assert states["Inst-1"] == {"time": 1.7e9, "value": "left out: a state of 70005 bytes"}
    assert states["Inst-2"] == {"time": 1.7e9, "value": "left out: a state of 60003 bytes"}
    assert states["Inst-3"]["value"].startswith("cannot be read: ")
    assert set(states) == {"Inst-0", "Inst-1", "Inst-2", "Inst-3"}


async def test_without_a_broker_it_is_said_why_there_are_no_states() -> None:
    async def ask(_request: ListLast) -> LastEvents:
        raise LinkLost("the broker is away")

    assert await LastStates(ask).now() == ({}, "the broker is away")
