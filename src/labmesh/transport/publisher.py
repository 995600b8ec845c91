"""The publishing end of events: a socket that connects to the broker's XSUB."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import zmq

from labmesh.errors import LabmeshError, LinkLost, TooLarge
from labmesh.protocol.codec import encode_event, encode_value
from labmesh.protocol.events import Sequencer
from labmesh.protocol.topics import topic
from labmesh.transport.channel import Channel, Frames
from labmesh.transport.monitor import EVENTS, Health, Monitor, News
from labmesh.transport.sockets import Sockets

__all__ = ["MAX_EVENT_BYTES", "Publisher"]

log = logging.getLogger(__name__)

#: Largest payload of an event, bytes. Larger things are datasets.
MAX_EVENT_BYTES = 256 * 2**10

#: How long after a break or a refusal the socket is made anew.
_REBUILD_S = {"down": 0.1, "refused": 1.0}


class Publisher:
    """Publishes one node's events on the running loop.

    The socket is an XPUB: unlike a PUB it tells when the broker has subscribed, so that the first
    event is not lost. It is made anew after each break, since it does not tell of a subscription
    that it takes for a repeat of the one before. Nothing is queued while the broker is away: an
    event of the past must not arrive as if it were of now. The sequence goes on counting, so
    subscribers see what they missed.

    :param on_up: called each time the broker has (again) subscribed.
    """

    def __init__(
        self,
        sockets: Sockets,
        endpoint: str,
        *,
        node_id: str,
        epoch: str,
        on_up: Callable[[], None] | None = None,
    ) -> None:
        self._sockets = sockets
        self._endpoint = endpoint
        self._node_id = node_id
        self._where = f"the broker's event port at {endpoint}"
        self._on_up = on_up
        self._loop = asyncio.get_running_loop()
        self._sequencer = Sequencer(node_id, epoch)
        self._rebuilding: asyncio.TimerHandle | None = None
        self._closed = False
        self.up = False
        self._build()

    @property
    def trouble(self) -> LabmeshError | None:
        """Why events do not get through; None: they do, or nothing is known yet."""
        return None if self.up else self._health.trouble

    def publish(self, family: str, kind: str, value: object) -> bool:
        """Publish a value under ``<family>.<node id>``; False: the broker is away, it is lost.

        :raises ProtocolError: the value cannot be encoded.
        :raises TooLarge: it is larger than 256 KiB.
        """
        return self.publish_encoded(family, kind, encode_value(value))

    def publish_encoded(
        self, family: str, kind: str, payload: bytes, interval_s: float = 0.0
    ) -> bool:
        """:meth:`publish` for a value that was encoded elsewhere.

        :param interval_s: seconds after which the next one is due; 0: nobody can tell.
        """
        if len(payload) > MAX_EVENT_BYTES:
            raise TooLarge(
                f"an event of {len(payload)} bytes; the limit is {MAX_EVENT_BYTES}: upload large "
                "results as datasets"
            )
        name = topic(family, self._node_id)
        event = self._sequencer.next(name, time.time(), kind, interval_s)
        if not self.up:
            return False
        return self._channel.send([name.encode(), encode_event(event), payload])

    def publish_tail(self) -> None:
        """Tell how far each topic has come, so that a loss at the end of one is noticed."""
        last = self._sequencer.last()
        last.pop(topic("tail", self._node_id), None)
        if last:
            self.publish("tail", "tail", last)

    def close(self, linger_ms: int = 200) -> None:
        """Let the last events leave, and close; twice is fine."""
        if self._closed:
            return
        self._closed, self.up = True, False
        if self._rebuilding is not None:
            self._rebuilding.cancel()
        self._teardown(linger_ms)

    def _build(self) -> None:
        self._rebuilding = None
        self._health = Health(self._where, encrypted=self._sockets.security.keys is not None)
        self._socket, monitor = self._sockets.connect(zmq.XPUB, self._endpoint, EVENTS)
        self._channel = Channel(self._socket, self._take, name=self._where)
        self._monitor = Monitor(monitor, self._health, self._on_news)

    def _teardown(self, linger_ms: int = 0) -> None:
        self._monitor.close()
        self._channel.close()
        self._sockets.close(self._socket, linger_ms)

    def _take(self, frames: Frames) -> None:
        subscribed = bytes(frames[0][:1]) == b"\x01"
        if subscribed and not self.up and self._rebuilding is None:
            self.up = True
            if self._on_up is not None:
                self._on_up()

    def _on_news(self, news: News | None) -> None:
        if news not in _REBUILD_S:
            return
        self.up = False
        if news == "refused":
            self._sockets.give_up(self._socket, self._endpoint)
        if not self._closed:
            self._rebuild(_REBUILD_S[news])

    def _rebuild(self, seconds: float) -> None:
        if self._rebuilding is None:
            self._rebuilding = self._loop.call_later(seconds, self._build_again)

    def _build_again(self) -> None:
        self._teardown()
        try:
            self._build()
        except LinkLost as exc:
            log.warning("%s", exc)
            self._health.trouble = exc
            self._rebuild(_REBUILD_S["refused"])
