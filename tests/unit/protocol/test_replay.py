"""The broker's short memory of events."""

from __future__ import annotations

from labmesh.protocol.codec import Buffer, decode_event, encode_event
from labmesh.protocol.event_frame import joined
from labmesh.protocol.messages import Event, LastEvent
from labmesh.protocol.replay import Ring, Rings

EPOCH = "e1"


def header(sequence: int, epoch: str = EPOCH) -> bytes:
    return encode_event(Event(publisher="psu-1", epoch=epoch, sequence=sequence, time=1.5))


def sequences(found: tuple[list[LastEvent], bool]) -> list[int]:
    return [decode_event(each.header).sequence for each in found[0]]


def keep(ring: Ring | Rings, topic: bytes, header: bytes, payload: bytes = b"") -> Buffer:
    frame = joined(topic, header, payload)
    ring.keep(topic, frame)
    return frame


def ring_of(count: int, **limits: int) -> Ring:
    ring = Ring(**limits)
    for sequence in range(1, count + 1):
        keep(ring, b"event.psu-1", header(sequence), b"payload-%d" % sequence)
    return ring


def test_a_range_comes_back_in_order_with_its_frames() -> None:
    events, more = ring_of(9).between("event.psu-1", EPOCH, 3, 5, 10_000)
    assert [each.payload for each in events] == [b"payload-3", b"payload-4", b"payload-5"]
    assert (events[0].topic, events[0].header, more) == ("event.psu-1", header(3), False)


def test_what_is_forgotten_is_left_out() -> None:
    ring = ring_of(9, max_events=4)
    assert len(ring) == 4
    assert sequences(ring.between("event.psu-1", EPOCH, 1, 9, 10_000)) == [6, 7, 8, 9]


def test_bytes_are_limited_too() -> None:
    one = len(joined(b"event.psu-1", header(1), b"payload-1"))
    assert len(ring_of(9, max_bytes=3 * one)) == 3


def test_another_topic_another_epoch_and_junk_are_not_mixed_in() -> None:
    ring = ring_of(2)
    keep(ring, b"event.psu-10", header(3), b"of another")
    keep(ring, b"event.psu-1", header(4, "e2"), b"of another life")
    keep(ring, b"event.psu-1", b"junk", b"no header")
    assert sequences(ring.between("event.psu-1", EPOCH, 1, 9, 10_000)) == [1, 2]


def test_a_page_ends_where_it_is_full_and_has_one_event_at_least() -> None:
    ring = ring_of(5)
    first, more = ring.between("event.psu-1", EPOCH, 2, 5, 1)
    assert (sequences((first, more)), more) == ([2], True)
    assert sequences(ring.between("event.psu-1", EPOCH, 3, 5, 10_000)) == [3, 4, 5]


def test_states_and_logs_do_not_push_out_what_happened() -> None:
    rings = Rings()
    keep(rings, b"event.psu-1", header(1), b"alarm")
    for sequence in range(1, 2001):
        keep(rings, b"state.psu-1", header(sequence), b"state")
        keep(rings, b"log.psu-1", header(sequence), b"line")
        keep(rings, b"tail.psu-1", header(sequence), b"tail")
    alarm, _ = rings.between("event.psu-1", EPOCH, 1, 1)
    assert [each.payload for each in alarm] == [b"alarm"]
    assert sequences(rings.between("state.psu-1", EPOCH, 1, 978)) == [977, 978]
    assert sequences(rings.between("log.psu-1", EPOCH, 1, 978)) == [977, 978]
    assert sequences(rings.between("tail.psu-1", EPOCH, 1, 2000)) == []
