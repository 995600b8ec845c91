"""The broker's event path: XSUB in, XPUB out, in a thread of its own.

Payloads are neither copied nor decoded; each event gets the broker's stamp. Fan-out happens inside
libzmq, so Python touches each event once, however many listen.
"""

from __future__ import annotations

import logging
import threading
import time

import zmq

from labmesh.errors import ProtocolError, TooLarge
from labmesh.protocol.addresses import Address
from labmesh.protocol.admission import Admission
from labmesh.protocol.codec import encode_stamp, encode_value
from labmesh.protocol.events import LastValues
from labmesh.protocol.messages import LastEvent, Stamp
from labmesh.protocol.publishing import Publications, Refused
from labmesh.protocol.replay import Ring, Rings
from labmesh.protocol.seldom import Seldom
from labmesh.protocol.topics import publishable
from labmesh.transport.audience import Audience
from labmesh.transport.channel import skip
from labmesh.transport.publisher import MAX_EVENT_BYTES
from labmesh.transport.sockets import Sockets
from labmesh.transport.witness import tell_refused

__all__ = ["Proxy"]

log = logging.getLogger(__name__)

_BATCH = 1000
_MAX_HEADER_BYTES = 1024
_STOP = b""
_NOBLOCK = int(zmq.NOBLOCK)
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
#: What waits for one subscriber that does not keep up: bytes, and events of any size.
_QUEUE_BYTES = 64 * 2**20
_QUEUE_EVENTS = (128, 20_000)
#: libzmq counts events, not bytes. The limit follows their mean size when it is off by this much.
_OFF = 1.25
_STATE, _MARK = b"state.", b"mark."
_COPY_BELOW = 2**14
_KNOWN_TOPICS = 10_000
#: So soon a change of the allow-list is seen, and so often it is looked whose time is over.
_LOOK_MS = 200
_LOOK_S = 1.0


class Proxy:
    """Forwards events until closed.

    :raises Conflict: a port is taken.
    """

    def __init__(self, sockets: Sockets, xsub: Address, xpub: Address, *, epoch: str) -> None:
        self._sockets = sockets
        self._epoch = epoch
        self._in, self.xsub = sockets.bind(zmq.XSUB, xsub, role="xsub", owner="broker")
        self._out, self.xpub = sockets.bind(zmq.XPUB, xpub, role="xpub", owner="broker")
        self._out.setsockopt(zmq.XPUB_MANUAL, 1)
        self._in.send(b"\x01")
        self._control, self._far = sockets.pair()
        self._lock = threading.Lock()
        self._last = LastValues()
        self._rings = Rings()
        self._admission = Admission()
        self._queue = _QueueLimit(self._out)
        #: who publishes is known where a mode proves it
        self._proves = sockets.security.is_encrypted
        self._guard = sockets.security.guard
        self._list_version = ""
        self._publications = None if self._guard is None else Publications(self._guard.grant_of)
        self._audience = Audience(self._guard)
        #: by mark: what else its subscriber asked for and did not get, as the payload says it
        self._not_taken: dict[bytes, bytes] = {}
        self._look_at = 0.0
        self._now = self._wall = 0.0
        #: topics that are good, and the ring of each
        self._known: dict[bytes, Ring | None] = {}
        self._warnings = Seldom()
        self.forwarded = 0
        #: events that were not of the right form, or under a topic that nobody may publish
        self.dropped = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="broker-events", daemon=True)
        self._thread.start()

    @property
    def subscriptions(self) -> int:
        """Distinct ones that are in force, besides whole families."""
        return len(self._admission)

    @property
    def subscriptions_refused(self) -> int:
        """Subscriptions to no topic of labmesh, beyond a limit, or of keys that were revoked."""
        return self._admission.refused + self._audience.refused

    @property
    def refused(self) -> dict[str, int]:
        """Events that their publishers may not publish, by reason; where the mode proves who."""
        if self._publications is None:
            return {}
        return {why: count for why, count in self._publications.refused.items()}  # noqa: C416

    def publish(self, topic: str, header: bytes, payload: bytes) -> None:
        """Publish an event of the broker itself."""
        self._control.send_multipart([topic.encode(), header, payload])

    def last(self, prefix: str, after: str) -> tuple[list[LastEvent], bool]:
        """A page of last values; True: there are more."""
        with self._lock:
            events, more = self._last.page(prefix, after)
        return events, more

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

    def close(self) -> None:
        """End the thread, let what was published leave, and close; twice is fine."""
        if self._closed:
            return
        self._closed = True
        self._control.send(_STOP)
        self._thread.join()
        self._sockets.close(self._out, 200)
        for socket in (self._in, self._control, self._far):
            self._sockets.close(socket)

    def _run(self) -> None:
        poller = zmq.Poller()
        for socket in (self._in, self._out, self._far):
            poller.register(socket, zmq.POLLIN)
        while True:
            ready = dict(poller.poll(None if self._guard is None else _LOOK_MS))
            self._look_around()
            if self._out in ready:
                self._read_subscriptions()
            if self._in in ready:
                self._forward_batch()
            if self._far in ready:
                frames = self._far.recv_multipart()
                if frames == [_STOP]:
                    return
                topic, header, payload = frames
                payload = self._not_taken.get(topic, payload)
                with self._lock:
                    self._send(topic, header, zmq.Frame(payload), self._stamp("broker"))

    # ── subscriptions ───────────────────────────────────────────────────────────────────────────

    def _read_subscriptions(self) -> None:
        """Take or refuse each. In manual mode one that is not confirmed is not in force."""
        for _ in range(_BATCH):
            try:
                frame = self._out.recv(_NOBLOCK, False)
            except zmq.Again:
                return
            if self._out.getsockopt(zmq.RCVMORE):
                skip(self._out)
                self.dropped += 1
                continue
            content = frame.bytes
            sign, topic = content[:1], content[1:]
            if self._audience.admits(frame, sign, topic):
                self._take_subscription(frame, sign, topic)

    def _look_around(self) -> None:
        """Whoever was revoked hears nothing more, and is not heard."""
        guard, publications = self._guard, self._publications
        if guard is None or publications is None:
            return
        now = time.monotonic()
        changed = guard.version != self._list_version
        if changed:
            self._list_version = guard.version
            publications.list_changed()
        if changed or now >= self._look_at:
            self._look_at = now + _LOOK_S
            self._audience.look()

    def _take_subscription(self, frame: zmq.Frame, sign: bytes, topic: bytes) -> None:
        # The option means the peer of the message that was read last.
        if sign == b"\x00":
            self._out.setsockopt(zmq.UNSUBSCRIBE, topic)
            self._admission.ended(topic)
            self._not_taken.pop(topic, None)
        elif sign != b"\x01" or not self._admission.admits(topic):
            self._audience.was_refused(frame, topic)
            if self._warnings.due(time.monotonic()) is not None:
                log.warning(
                    "broker refused a subscription to %r (%d so far): topics are <family>.<id>, "
                    "such as state.psu-1, and there is an end to their number",
                    topic[:200],
                    self._admission.refused,
                )
        else:
            self._out.setsockopt(zmq.SUBSCRIBE, topic)
            if topic.startswith(_MARK) and (refused := self._audience.refused_to(frame)):
                self._not_taken[topic] = encode_value([each.decode("latin-1") for each in refused])

    # ── events ──────────────────────────────────────────────────────────────────────────────────

    def _forward_batch(self) -> None:
        stamps: dict[str, bytes] = {}
        self._now, self._wall = time.monotonic(), time.time()
        with self._lock:
            for _ in range(_BATCH):
                try:
                    topic = self._in.recv(_NOBLOCK, False)
                except zmq.Again:
                    break
                try:
                    self._forward(topic, stamps)
                except ProtocolError as exc:
                    skip(self._in)
                    self._drop(exc)
                    if self._publications is not None:
                        self._publications.violated(str(topic.get("User-Id")), self._now)
                except Refused as exc:
                    self._drop(exc)
                    if self._sockets.witness is not None:
                        tell_refused(self._sockets.witness, topic, exc)
        self._queue.follow()

    def _forward(self, first: zmq.Frame, stamps: dict[str, bytes]) -> None:
        if not first.more:
            raise ProtocolError("an event has 3 frames, not 1")
        topic = first.bytes
        if topic not in self._known:
            self._learn(topic)
        receive = self._in.recv
        second = receive(_NOBLOCK, False)
        if not second.more:
            raise ProtocolError("an event has 3 frames, not 2")
        payload = receive(_NOBLOCK, False)
        if payload.more:
            raise ProtocolError("an event has 3 frames, not more")
        header = second.bytes
        if len(header) > _MAX_HEADER_BYTES or len(payload) > MAX_EVENT_BYTES:
            raise TooLarge(f"event {topic!r}: {len(header)} + {len(payload)} bytes")
        by = str(first.get("User-Id")) if self._proves else ""
        if self._publications is not None:
            self._publications.take(by, topic, header, self._now, self._wall)
        stamp = stamps.get(by)
        if stamp is None:
            stamp = stamps[by] = self._stamp(by)
        self._send(topic, header, payload, stamp)

    def _learn(self, topic: bytes) -> None:
        """Look at a topic once; what was good stays good. It is looked up with each event."""
        if not publishable(topic):
            raise ProtocolError(f"nobody may publish under {topic[:200]!r}")
        if len(self._known) >= _KNOWN_TOPICS:
            self._known.clear()
        self._known[topic] = self._rings.ring_of(topic)

    def _stamp(self, by: str) -> bytes:
        # One a batch and publisher: the events of a batch came at the same time.
        return encode_stamp(Stamp(broker=self._epoch, time=time.time(), by=by))

    def _send(self, topic: bytes, header: bytes, payload: zmq.Frame, stamp: bytes) -> None:
        """Forward an event, and remember it. Hold the lock."""
        size = len(payload)
        # A small message shares libzmq's buffer with its neighbours, which it would keep alive.
        kept = payload.bytes if size < _COPY_BELOW else payload.buffer
        self._pass_on(topic, header, kept if size < _COPY_BELOW else payload, stamp)
        self.forwarded += 1
        ring = self._known[topic] if topic in self._known else self._rings.ring_of(topic)
        if ring is not None:
            ring.keep(topic, header, kept)
        if topic.startswith(_STATE):
            self._last.keep(topic, header, kept)
        self._queue.passed(size)

    def _pass_on(
        self, topic: bytes, header: bytes, payload: bytes | memoryview | zmq.Frame, stamp: bytes
    ) -> None:
        send = self._out.send
        send(topic, _MORE)
        send(header, _MORE)
        send(payload, _MORE, type(payload) is bytes)
        send(stamp, _NOBLOCK)

    def _drop(self, exc: Exception) -> None:
        self.dropped += 1
        if self._warnings.due(time.monotonic()) is not None:
            log.warning("broker dropped an event (%d so far): %s", self.dropped, exc)


class _QueueLimit:
    """How many events may wait for a subscriber, so that they are not too many bytes.

    libzmq drops events for one whose queue is full, and for nobody else.
    """

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._bytes, self._events = 0, 0
        self._limit = _QUEUE_EVENTS[1]
        socket.sndhwm = self._limit

    def passed(self, size: int) -> None:
        """An event was forwarded."""
        self._bytes += size
        self._events += 1

    def follow(self) -> None:
        """Adjust the limit to the mean size of late."""
        if self._events < 100 and self._bytes < _QUEUE_BYTES // 16:
            return
        mean = max(1, self._bytes // self._events)
        self._bytes = self._events = 0
        least, most = _QUEUE_EVENTS
        limit = min(most, max(least, _QUEUE_BYTES // mean))
        if not self._limit / _OFF <= limit <= self._limit * _OFF:
            self._limit = limit
            self._socket.sndhwm = limit
