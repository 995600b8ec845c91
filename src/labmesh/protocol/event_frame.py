"""An event on the wire: one frame, because each frame of a message costs every hop once more.

::

    topic   NUL   length of the header   header   payload
                  2 bytes, big-endian

The broker puts its stamp behind it: into the same frame, with the stamp's length (2 bytes) at the
very end, or as a second frame, where the event is too large to be copied.
"""

from __future__ import annotations

from collections.abc import Sequence

from labmesh.errors import ProtocolError
from labmesh.protocol.codec import Buffer

__all__ = ["MAX_EVENT_BYTES", "joined", "outline", "parted", "sealed", "unsealed"]

#: Largest payload of an event. Larger things are datasets.
MAX_EVENT_BYTES = 256 * 2**10

_LENGTH = 2
#: The topic and the header's length are within these bytes of a frame that is no forgery.
_HEAD_BYTES = 256
_COPY_BELOW = 4096


def joined(topic: bytes, header: bytes, payload: Buffer) -> bytes:
    """The frame of an event."""
    return b"".join((topic, b"\0", len(header).to_bytes(_LENGTH, "big"), header, payload))


def outline(frame: Buffer) -> tuple[bytes, int, int]:
    """The topic, and where in the frame the header begins and ends; the rest is the payload.

    :raises ProtocolError: the frame is none of an event.
    """
    head = frame if type(frame) is bytes else bytes(frame[:_HEAD_BYTES])
    at = head.find(0)
    begin = at + 1 + _LENGTH
    if at >= 0 and begin <= len(head):
        end = begin + (head[at + 1] << 8 | head[at + 2])
        if end <= len(frame):
            return head[:at], begin, end
    raise ProtocolError(
        "an event is one frame: topic, a zero byte, the length of the header as two bytes, "
        "header, payload"
    )


def parted(frame: Buffer) -> tuple[bytes, Buffer, Buffer]:
    """Topic, header and payload of a frame; a large payload is a view of it.

    :raises ProtocolError: the frame is none of an event.
    """
    topic, begin, end = outline(frame)
    rest = frame if len(frame) < _COPY_BELOW else memoryview(frame)
    return topic, frame[begin:end], rest[end:]


def sealed(stamp: bytes) -> bytes:
    """What the broker puts behind an event."""
    return stamp + len(stamp).to_bytes(_LENGTH, "big")


def unsealed(frames: Sequence[Buffer]) -> tuple[Buffer, Buffer]:
    """The frame of an event as its publisher sent it, and the stamp.

    :param frames: a message of the broker.
    :raises ProtocolError: it is none of an event.
    """
    if 1 <= len(frames) <= 2:
        event, last = frames[0], frames[-1]
        end = len(last) - _LENGTH
        begin = end - (last[-2] << 8 | last[-1]) if end >= 0 else -1
        if begin >= 0:
            return event if event is not last else event[:begin], last[begin:end]
    raise ProtocolError("an event from a broker is one frame, or two: the event, its stamp")
