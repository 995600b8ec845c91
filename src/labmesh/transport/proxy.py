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
from labmesh.protocol.codec import encode_stamp
from labmesh.protocol.events import LastValues
from labmesh.protocol.messages import LastEvent, Stamp
from labmesh.protocol.seldom import Seldom
from labmesh.protocol.topics import publishable
from labmesh.transport.channel import Frames, receive, skip
from labmesh.transport.publisher import MAX_EVENT_BYTES
from labmesh.transport.sockets import Sockets

__all__ = ["Proxy"]

log = logging.getLogger(__name__)

_BATCH = 1000
_MAX_HEADER_BYTES = 1024
_STOP = b""


class Proxy:
    """Forwards events until closed.

    :raises Conflict: a port is taken.
    """

    def __init__(self, sockets: Sockets, xsub: Address, xpub: Address, *, epoch: str) -> None:
        self._sockets = sockets
        self._epoch = epoch
        self._in, self.xsub = sockets.bind(zmq.XSUB, xsub, role="xsub", owner="broker")
        self._out, self.xpub = sockets.bind(zmq.XPUB, xpub, role="xpub", owner="broker")
        self._in.send(b"\x01")
        self._control, self._far = sockets.pair()
        self._lock = threading.Lock()
        self._last = LastValues()
        self._warnings = Seldom()
        self.forwarded = 0
        #: events that were not of the right form, or under a topic that nobody may publish
        self.dropped = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="broker-events", daemon=True)
        self._thread.start()

    def publish(self, topic: str, header: bytes, payload: bytes) -> None:
        """Publish an event of the broker itself."""
        self._control.send_multipart([topic.encode(), header, payload])

    def last(self, prefix: str, after: str) -> tuple[list[LastEvent], bool]:
        """A page of last values; True: there are more."""
        with self._lock:
            events, more = self._last.page(prefix, after)
        return events, more

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
            ready = dict(poller.poll())
            if self._out in ready:
                self._read_subscriptions()
            if self._in in ready:
                self._forward_batch()
            if self._far in ready:
                frames = self._far.recv_multipart()
                if frames == [_STOP]:
                    return
                self._send(list(frames))

    def _read_subscriptions(self) -> None:
        """They take effect inside libzmq; they only have to be taken off the queue."""
        for _ in range(_BATCH):
            try:
                receive(self._out)
            except zmq.Again:
                return
            except TooLarge:
                skip(self._out)
                self.dropped += 1

    def _forward_batch(self) -> None:
        for _ in range(_BATCH):
            try:
                frames = receive(self._in)
                self._forward(frames)
            except zmq.Again:
                return
            except ProtocolError as exc:
                skip(self._in)
                self._drop(exc)

    def _forward(self, frames: Frames) -> None:
        if len(frames) != 3:
            raise ProtocolError(f"an event has 3 frames, not {len(frames)}")
        if not publishable(bytes(frames[0])):
            raise ProtocolError(f"nobody may publish under {bytes(frames[0][:200])!r}")
        name = bytes(frames[0]).decode("ascii")
        if len(frames[1]) > _MAX_HEADER_BYTES or len(frames[2]) > MAX_EVENT_BYTES:
            raise TooLarge(f"event {name}: {len(frames[1])} + {len(frames[2])} bytes")
        if name.startswith("state."):
            with self._lock:
                self._last.keep(name.encode(), bytes(frames[1]), bytes(frames[2]))
        self._send(frames)

    def _send(self, frames: Frames) -> None:
        stamp = encode_stamp(Stamp(broker=self._epoch, time=time.time()))
        self._out.send_multipart([*frames, stamp], zmq.NOBLOCK)
        self.forwarded += 1

    def _drop(self, exc: ProtocolError) -> None:
        self.dropped += 1
        if self._warnings.due(time.monotonic()) is not None:
            log.warning("broker dropped an event (%d so far): %s", self.dropped, exc)
