"""Events on the wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labmesh.errors import ProtocolError
from labmesh.protocol.event_frame import joined, outline, parted, sealed, unsealed

TOPICS = st.binary(max_size=140).filter(lambda topic: 0 not in topic)


@given(TOPICS, st.binary(max_size=2000), st.binary(max_size=9000), st.binary(max_size=300))
def test_what_was_joined_comes_apart_again(
    topic: bytes, header: bytes, payload: bytes, stamp: bytes
) -> None:
    frame = joined(topic, header, payload)
    seal = sealed(stamp)
    for message in ([frame + seal], [frame, seal], [memoryview(frame), seal]):
        event, found = unsealed(message)
        assert (bytes(event), bytes(found)) == (frame, stamp)
        assert tuple(map(bytes, parted(event))) == (topic, header, payload)


def test_a_large_payload_is_a_view_and_not_a_copy() -> None:
    frame = joined(b"event.psu-1", b"header", bytes(5000))
    payload = parted(frame)[2]
    assert isinstance(payload, memoryview)
    assert payload.obj is frame
    assert isinstance(parted(joined(b"event.psu-1", b"header", bytes(500)))[2], bytes)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"event.psu-1",
        b"event.psu-1\0",
        b"event.psu-1\0\0",
        b"event.psu-1\0\0\x05head",
        memoryview(b"x" * 300 + b"\0\0\0"),
    ],
)
def test_what_is_no_event_is_refused(frame: bytes | memoryview) -> None:
    with pytest.raises(ProtocolError, match="an event is one frame: topic, a zero byte"):
        outline(frame)


def test_the_least_event_has_nothing_but_its_topic() -> None:
    assert outline(b"event.psu-1\0\0\0") == (b"event.psu-1", 14, 14)


@pytest.mark.parametrize(
    "message",
    [[], [b""], [b"\0"], [b"\0\1"], [b"a" * 5 + b"\0\6"], [b"e", b"\0\1"], [b"a", b"b", b"\0\0"]],
)
def test_what_no_broker_sends_is_refused(message: list[bytes]) -> None:
    with pytest.raises(ProtocolError, match="an event from a broker"):
        unsealed(message)
