"""ZMTP 3.1 of a client: what another side says, in whatever pieces, is read as it was meant."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from labmesh.errors import ProtocolError, TooLarge
from labmesh.protocol.zmtp import LARGE_BYTES, MAX_FRAMES, Incoming, head_of

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + b"\x01" + bytes(31)


def command(body: bytes) -> bytes:
    return bytes([4, len(body)]) + body


def ready(kind: bytes = b"ROUTER") -> bytes:
    return command(b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind)


def ping(context: bytes = b"", *, ttl: int = 40) -> bytes:
    return command(b"\x04PING" + ttl.to_bytes(2, "big") + context)


def message(*frames: bytes, between: bytes = b"") -> bytes:
    """On the wire; with some commands between its frames."""
    last = len(frames) - 1
    return between.join(
        head_of(len(each), more=index < last) + each for index, each in enumerate(frames)
    )


HANDSHAKE = GREETING + ready()


def taken(incoming: Incoming, *pieces: bytes) -> list[list[bytes | memoryview]]:
    """The messages in what is read, as a line reads it."""
    messages = []
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            room = incoming.room()
            if room is None:
                incoming.feed(bytes(rest))
                rest = rest[len(rest) :]
            else:
                count = min(len(room), len(rest))
                room[:count] = rest[:count]
                incoming.filled(count)
                rest = rest[count:]
            while (frames := incoming.take()) is not None:
                messages.append(frames)
    return messages


def connected(memory: Callable[[int], memoryview] | None = None) -> Incoming:
    """A connection that has shaken hands, and whose own part of that was sent."""
    incoming = Incoming() if memory is None else Incoming(memory)
    assert taken(incoming, HANDSHAKE) == []
    assert incoming.ready
    incoming.due = b""
    return incoming


# ── the handshake ───────────────────────────────────────────────────────────────────────────────


def test_all_of_the_handshake_is_due_at_once() -> None:
    incoming = Incoming()
    assert len(incoming.due) > 64
    assert incoming.due[:1] + incoming.due[9:12] == b"\xff\x7f\x03\x01"
    assert incoming.due[12:16] == b"NULL"
    assert b"Socket-Type\x00\x00\x00\x06DEALER" in incoming.due
    assert not incoming.ready
    assert incoming.take() is None


@pytest.mark.parametrize("minor", [0, 1, 2])
def test_whoever_speaks_zmtp_3_is_understood(minor: int) -> None:
    greeting = GREETING[:11] + bytes([minor]) + GREETING[12:]
    incoming = Incoming()
    assert taken(incoming, *[bytes([each]) for each in greeting + ready()]) == []
    assert incoming.ready
    assert taken(incoming, message(b"hello")) == [[b"hello"]]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "does not speak ZMTP"),
        (b"\0", "does not speak ZMTP"),
        (b"\xff" + bytes(63), "ZMTP 3"),
        (GREETING[:10] + b"\x02" + GREETING[11:], "ZMTP 3"),
        (GREETING[:12] + b"CURVE" + GREETING[17:], "another mechanism"),
        (GREETING[:12] + b"NULLX" + GREETING[17:], "another mechanism"),
        (GREETING + message(b"early"), "before the handshake"),
        (GREETING + message(bytes(LARGE_BYTES)), "before the handshake"),
        (GREETING + ready(b"DEALER"), "no ROUTER"),
        (GREETING + command(b"\x05ERROR\x03400"), "refused: b'400'"),
        (HANDSHAKE + command(b"\x05ERROR\x05Sorry"), "refused: b'Sorry'"),
        (HANDSHAKE + b"\x08\x00", "no frame"),
        (HANDSHAKE + b"\x05\x00", "no command"),
        (HANDSHAKE + b"\x0c\x00", "no command"),
        (HANDSHAKE + b"\x06" + LARGE_BYTES.to_bytes(8, "big"), "no command"),
        (HANDSHAKE + command(b"\x04PING\0"), "without sense"),
        (HANDSHAKE + 600 * ping(), "without end"),
    ],
)
def test_what_is_not_understood_ends_it(said: bytes, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        taken(Incoming(), said)


# ── messages ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "size", [0, 1, 255, 256, 4095, 4096, LARGE_BYTES - 1, LARGE_BYTES, 200_000]
)
def test_a_frame_of_any_size_comes_whole_alone_or_behind_others(size: int) -> None:
    content = bytes(each % 251 for each in range(size))
    wire = message(content) + message(b"x", content, b"") + message(content)
    for pieces in ([wire], [wire[:size], wire[size:]], [wire[:1], wire[1:9], wire[9:]]):
        got = taken(connected(), *pieces)
        assert got == [[content], [b"x", content, b""], [content]]


def test_a_header_is_bytes_and_an_array_lies_in_memory_that_may_be_changed() -> None:
    for size in (4096, 3 * LARGE_BYTES):
        wire = message(bytes(size), b"small", bytes(size))
        for pieces in ([wire], [wire[:10], wire[10 : size + 20], wire[size + 20 :]]):
            ((header, small, array),) = taken(connected(), *pieces)
            assert type(header) is type(small) is bytes
            assert isinstance(array, memoryview)
            assert not array.readonly
            assert (len(header), small, len(array)) == (size, b"small", size)


def test_a_part_of_a_message_can_be_told_from_nothing() -> None:
    incoming = connected()
    assert not incoming.is_partial
    for part in (message(b"ab")[:3], b"b" + head_of(1, more=True) + b"c", message(b"d")[:1]):
        taken(incoming, part)
        assert incoming.is_partial
    assert taken(incoming, b"\x01d") == [[b"c", b"d"]]
    assert not incoming.is_partial
    taken(incoming, message(bytes(LARGE_BYTES))[:-1])
    assert incoming.is_partial
    assert taken(incoming, b"\0") == [[bytes(LARGE_BYTES)]]
    assert not incoming.is_partial


def test_a_message_has_an_end() -> None:
    most = [b""] * MAX_FRAMES
    assert taken(connected(), message(*most) + message(*most)) == [most, most]
    with pytest.raises(TooLarge, match=f"more than {MAX_FRAMES}"):
        taken(connected(), message(*most, b""))
    asked: list[int] = []

    def none(size: int) -> memoryview:
        asked.append(size)
        return memoryview(bytearray(size))

    with pytest.raises(TooLarge, match=f"more than {MAX_FRAMES}"):
        taken(connected(none), message(*most, bytes(LARGE_BYTES))[:-LARGE_BYTES])
    assert asked == []


@pytest.mark.parametrize("error", [MemoryError, OverflowError])
def test_a_frame_without_room_ends_it(error: type[Exception]) -> None:
    def none(size: int) -> memoryview:
        raise error(size)

    with pytest.raises(TooLarge, match=f"a frame of {2**62} bytes"):
        taken(connected(none), b"\x02" + (2**62).to_bytes(8, "big"))
    small = bytes(LARGE_BYTES - 1)
    assert taken(connected(none), message(small)[:100], message(small)[100:]) == [[small]]


# ── commands ────────────────────────────────────────────────────────────────────────────────────


def test_a_ping_is_answered_with_its_context() -> None:
    incoming = connected()
    assert incoming.ttl_s == 0.0
    assert taken(incoming, ping(b"abc", ttl=35) + ping()) == []
    assert incoming.due == command(b"\x04PONGabc") + command(b"\x04PONG")
    assert incoming.ttl_s == 4.0
    incoming.due = b""
    taken(incoming, ping(bytes(100), ttl=1))
    assert incoming.due == command(b"\x04PONG" + bytes(16))
    assert incoming.ttl_s == 0.1


def test_other_commands_are_skipped() -> None:
    long = b"\x06" + (300).to_bytes(8, "big") + b"\x09SUBSCRIBE" + bytes(290)
    others = command(b"\x04PONG") + long + command(b"") + ready()
    incoming = connected()
    assert taken(incoming, others + message(b"a", b"b", between=others) + others) == [[b"a", b"b"]]
    assert incoming.due == b""
    assert incoming.ready


frames = st.one_of(
    st.binary(max_size=300),
    st.integers(0, 2 * LARGE_BYTES).map(lambda size: bytes([size % 256]) * size),
)
streams = st.lists(
    st.tuples(
        st.lists(frames, min_size=1, max_size=4),
        st.sampled_from([b"", ping(b"?"), command(b"\x04PONG") + ping(b"!!")]),
    ),
    max_size=4,
)


@given(said=streams, cuts=st.lists(st.floats(0, 1), max_size=12))
@example(said=[([b"a" * LARGE_BYTES, b"b"], ping())], cuts=[])
def test_however_it_is_chopped_it_is_the_same(
    said: list[tuple[list[bytes], bytes]], cuts: list[float]
) -> None:
    wire = HANDSHAKE + b"".join(message(*frames, between=asks) for frames, asks in said)
    at = sorted(int(each * len(wire)) for each in cuts)
    pieces = [wire[begin:end] for begin, end in zip([0, *at], [*at, len(wire)], strict=True)]
    incoming = Incoming()
    incoming.due = b""
    assert taken(incoming, *pieces) == [frames for frames, _ in said]
    asked = sum(asks.count(b"\x04PING") * (len(frames) - 1) for frames, asks in said)
    assert incoming.due.count(b"\x04PONG") == asked
    assert not incoming.is_partial
