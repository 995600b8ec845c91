"""The broker's event path: XSUB in, XPUB out, in a thread of its own.

No payload is decoded, and no large one is copied; each event gets the broker's stamp. Fan-out
happens inside libzmq, so Python touches each event once, however many listen.
"""

from __future__ import annotations

import logging
import threading
import time

import zmq

from labmesh.protocol.addresses import Address
from labmesh.protocol.admission import Admission
from labmesh.protocol.codec import encode_value
from labmesh.protocol.publishing import Publications
from labmesh.protocol.seldom import Seldom
from labmesh.transport.audience import WAITING_BYTES, Audience
from labmesh.transport.channel import POLLIN, events_of, skip
from labmesh.transport.forwarding import Forwarding
from labmesh.transport.sockets import Sockets

__all__ = ["Proxy"]

log = logging.getLogger(__name__)

_BATCH = 50
_STOP, _ASK = b"", b"?"
_NOBLOCK = int(zmq.NOBLOCK)
_MARK = b"mark."
#: So soon a change of the allow-list is seen, and so often it is looked whose time is over.
_LOOK_MS = 200
_LOOK_S = 1.0
#: How often it is looked who does not keep up, while as much is sent as may wait for one.
_COUNTS = 8


class Proxy:
    """Forwards events until closed.

    :raises Conflict: a port is taken.
    """

    def __init__(self, sockets: Sockets, xsub: Address, xpub: Address, *, epoch: str) -> None:
        self._sockets = sockets
        self._in, self.xsub = sockets.bind(zmq.XSUB, xsub, role="xsub", owner="broker")
        self._out, self.xpub = sockets.bind(zmq.XPUB, xpub, role="xpub", owner="broker")
        self._out.setsockopt(zmq.XPUB_MANUAL, 1)
        self._in.send(b"\x01")
        self._intakes = {each: sockets.intake(each) for each in (self._in, self._out)}
        self._control, self._far = sockets.pair()
        self._control_lock = threading.Lock()
        self._admission = Admission()
        self._guard = sockets.security.guard
        self._list_version = ""
        self._publications = None if self._guard is None else Publications(self._guard.grant_of)
        self._audience = Audience(self._guard)
        #: by mark: what else its subscriber asked for and did not get, as the payload says it
        self._not_taken: dict[bytes, bytes] = {}
        self._look_at = 0.0
        #: when so many bytes were sent it is looked who does not keep up
        self._count_at = 0
        self._warnings = Seldom()
        #: messages on the subscribers' side that were no subscription
        self.dropped = 0
        self.events = Forwarding(
            self._in, self._out, sockets, epoch=epoch, publications=self._publications
        )
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="broker-events", daemon=True)
        self._thread.start()
        for intake in self._intakes.values():
            intake.on_question(self._ask)

    @property
    def subscriptions(self) -> int:
        """Distinct ones that are in force, besides whole families."""
        return len(self._admission)

    @property
    def subscriptions_refused(self) -> int:
        """Subscriptions to no topic of labmesh, beyond a limit, or of keys that were revoked."""
        return self._admission.refused + self._audience.refused

    @property
    def connections_ended(self) -> int:
        """Subscribers' connections: of keys that were revoked, of who asked without end, or did not
        keep up."""
        return self._audience.cut

    @property
    def refused(self) -> dict[str, int]:
        """Events that their publishers may not publish, by reason; where the mode proves who."""
        if self._publications is None:
            return {}
        return {why: count for why, count in self._publications.refused.items()}  # noqa: C416

    def publish(self, topic: str, header: bytes, payload: bytes) -> None:
        """Publish an event of the broker itself."""
        with self._control_lock:
            self._control.send_multipart([topic.encode(), header, payload])

    def close(self) -> None:
        """End the thread, let what was published leave, and close; twice is fine."""
        with self._control_lock:
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
                self.events.forward()
                if self.events.sent_bytes >= self._count_at:
                    self._count_at = self.events.sent_bytes + WAITING_BYTES // _COUNTS
                    self._audience.end_those_behind(self.events)
            if self._far in ready:
                frames = self._far.recv_multipart()
                if frames == [_STOP]:
                    return
                if frames == [_ASK]:
                    self._answer()
                    continue
                topic, header, payload = frames
                self.events.publish(topic, header, self._not_taken.get(topic, payload))

    def _ask(self) -> None:
        """Have the thread look; in any thread."""
        with self._control_lock:
            if not self._closed:
                self._control.send(_ASK)

    def _answer(self) -> None:
        """Was everything taken that has arrived?"""
        for socket, intake in self._intakes.items():
            question = intake.question
            if not events_of(socket) & POLLIN:
                intake.emptied(question)

    # ── subscriptions ───────────────────────────────────────────────────────────────────────────

    def _read_subscriptions(self) -> None:
        """Take or refuse each. In manual mode one that is not confirmed is not in force."""
        intake = self._intakes[self._out]
        for _ in range(_BATCH):
            try:
                frame = self._out.recv(_NOBLOCK, False)
            except zmq.Again:
                return
            if intake.suspects:
                intake.heard(frame)
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
