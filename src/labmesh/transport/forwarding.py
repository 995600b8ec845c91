"""What the broker does with each event: look whose it is, stamp it, send it on, remember it."""

from __future__ import annotations

import logging
import threading
import time

import zmq

from labmesh.errors import ProtocolError, TooLarge
from labmesh.protocol.codec import encode_stamp
from labmesh.protocol.event_frame import MAX_EVENT_BYTES, joined, outline, sealed
from labmesh.protocol.events import LastValues
from labmesh.protocol.messages import LastEvent, Stamp
from labmesh.protocol.publishing import Publications, Refused
from labmesh.protocol.replay import Ring, Rings
from labmesh.protocol.seldom import Seldom
from labmesh.protocol.topics import publishable
from labmesh.transport.channel import skip
from labmesh.transport.sockets import Sockets
from labmesh.transport.witness import tell_refused

__all__ = ["Forwarding"]

log = logging.getLogger(__name__)

#: Events and bytes that are forwarded before the subscriptions are looked at again.
_BATCH, _BATCH_BYTES = 1000, 2**22
#: Frames of an endless message that are dropped before others get their turn.
_SKIPPED = 2000
_MAX_HEADER_BYTES = 1024
_NOBLOCK = int(zmq.NOBLOCK)
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
#: That of pyzmq's own class also looks for arguments that no event has.
_send = zmq.backend.Socket.send
_STATE = b"state."
#: Copying costs less than a second frame does.
_COPY_BELOW = 2**14
_KNOWN_TOPICS = 10_000


class _Topic:
    """What is known of a topic that is good."""

    __slots__ = ("is_state", "ring", "sent_bytes")

    def __init__(self, ring: Ring | None, is_state: bool) -> None:
        self.ring, self.is_state = ring, is_state
        self.sent_bytes = 0


class Forwarding:
    """The events on their way from one socket to the other. In the thread that reads ``source``,
    but for the memory, which any thread may ask.

    :param publications: who may publish what; None: the mode does not prove who publishes.
    """

    def __init__(
        self,
        source: zmq.Socket[bytes],
        target: zmq.Socket[bytes],
        sockets: Sockets,
        *,
        epoch: str,
        publications: Publications | None,
    ) -> None:
        self._source, self._target = source, target
        self._epoch = epoch
        self._publications = publications
        #: who publishes is known where a mode proves it
        self._proves = sockets.security.is_encrypted
        self._sockets = sockets
        self._intake = sockets.intake(source)
        self._lock = threading.Lock()
        self._last = LastValues()
        self._rings = Rings()
        self._known: dict[bytes, _Topic] = {}
        #: how often what was known of topics was forgotten
        self.generation = 0
        #: in the middle of a message that is none, and has many frames
        self._is_skipping = False
        self._warnings = Seldom()
        self.forwarded = 0
        #: bytes that went to each subscriber of everything
        self.sent_bytes = 0
        #: events that were not of the right form, or under a topic that nobody may publish
        self.dropped = 0

    def last(self, prefix: str, after: str) -> tuple[list[LastEvent], bool]:
        """A page of last values; True: there are more."""
        with self._lock:
            return self._last.page(prefix, after)

    def replay(self, topic: str, epoch: str, first: int, last: int) -> tuple[list[LastEvent], bool]:
        """Events of the recent past, by their sequences; those that are forgotten are left out.
        True: there are more.
        """
        with self._lock:
            return self._rings.between(topic, epoch, first, last)

    def forget(self, node_id: str) -> None:
        """A node has left: its last state is no longer the state of anything."""
        with self._lock:
            self._last.forget_node(node_id)

    def sent_under(self, prefixes: tuple[bytes, ...]) -> int:
        """Of :attr:`sent_bytes`, those under topics that begin with one of these, since the last
        change of :attr:`generation`. In the thread that reads ``source``.
        """
        known = self._known.items()
        return sum(each.sent_bytes for topic, each in known if topic.startswith(prefixes))

    def publish(self, topic: bytes, header: bytes, payload: bytes) -> None:
        """Send an event of the broker itself."""
        event = joined(topic, header, payload)
        with self._lock:
            _send(self._target, event + self._stamp("broker"), _NOBLOCK)
            self._rings.keep(topic, event)
        self.forwarded += 1

    def forward(self) -> None:
        """Forward what has come, at most a batch.

        It is one loop, because every call of a function shows in what a broker carries.
        """
        receive, target, send = self._source.recv, self._target, _send
        if self._is_skipping:
            self._is_skipping = not skip(self._source, _SKIPPED)
            return
        suspects = self._intake.suspects
        known, last, publications = self._known, self._last, self._publications
        now, wall = time.monotonic(), time.time()
        # The events of a batch came at the same time.
        stamps: dict[str, bytes] = {}
        user, passed, sent = "", 0, 0
        with self._lock:
            for _ in range(_BATCH):
                if sent > _BATCH_BYTES or self._is_skipping:
                    break
                try:
                    frame = receive(_NOBLOCK, False)
                except zmq.Again:
                    break
                if suspects:
                    self._intake.heard(frame)
                try:
                    if frame.more:
                        raise ProtocolError("an event is one frame, not more")
                    size = len(frame)
                    # A small message shares a buffer with others, which it would keep alive.
                    event = frame.bytes if size < _COPY_BELOW else frame.buffer
                    topic, begin, end = outline(event)
                    place = known.get(topic) or self._learn(topic)
                    if end - begin > _MAX_HEADER_BYTES or size - end > MAX_EVENT_BYTES:
                        raise TooLarge(f"event {topic!r}: {end - begin} + {size - end} bytes")
                    if self._proves:
                        user = str(frame.get("User-Id"))
                        if publications is not None:
                            publications.take(user, topic, bytes(event[begin:end]), now, wall)
                    stamp = stamps.get(user)
                    if stamp is None:
                        stamp = stamps[user] = self._stamp(user)
                    if isinstance(event, bytes):
                        send(target, event + stamp, _NOBLOCK)
                    else:
                        send(target, frame, _MORE, False)
                        send(target, stamp, _NOBLOCK)
                    passed += 1
                    # What ZeroMQ puts before a frame is counted too low rather than too high.
                    size += len(stamp) + 2
                    sent += size
                    place.sent_bytes += size
                    if place.ring is not None:
                        place.ring.keep(topic, event)
                    if place.is_state:
                        last.keep(topic, event)
                except (ProtocolError, Refused) as exc:
                    self._refuse(frame, exc, now)
        self.forwarded += passed
        self.sent_bytes += sent

    def _learn(self, topic: bytes) -> _Topic:
        """Look at a topic once; what was good stays good. It is looked up with each event."""
        if not publishable(topic):
            raise ProtocolError(f"nobody may publish under {topic[:200]!r}")
        if len(self._known) >= _KNOWN_TOPICS:
            self._known.clear()
            self.generation += 1
        place = self._known[topic] = _Topic(self._rings.ring_of(topic), topic.startswith(_STATE))
        return place

    def _stamp(self, by: str) -> bytes:
        return sealed(encode_stamp(Stamp(broker=self._epoch, time=time.time(), by=by)))

    def _refuse(self, frame: zmq.Frame, why: ProtocolError | Refused, now: float) -> None:
        if isinstance(why, Refused):
            if self._sockets.witness is not None:
                tell_refused(self._sockets.witness, frame, why)
        else:
            self._is_skipping = not skip(self._source, _SKIPPED)
            if self._publications is not None:
                self._publications.violated(str(frame.get("User-Id")), now)
        self.dropped += 1
        if self._warnings.due(time.monotonic()) is not None:
            log.warning("broker dropped an event (%d so far): %s", self.dropped, why)
