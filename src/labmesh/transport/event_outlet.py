"""One broker's XSUB, as a publisher is connected to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import zmq

from labmesh.errors import AuthenticationError, LabmeshError, LinkLost
from labmesh.protocol.codec import Buffer
from labmesh.transport.channel import Channel, Frames
from labmesh.transport.monitor import EVENTS, Monitor, News, health_of
from labmesh.transport.sockets import Sockets

__all__ = ["EventOutlet"]

log = logging.getLogger(__name__)

#: How long after a break or a refusal the socket is made anew.
_REBUILD_S = {"down": 0.1, "refused": 1.0}


class EventOutlet:
    """A connection over which events leave, on the running loop.

    The socket is an XPUB: unlike a PUB it tells when the broker has subscribed, so that the first
    event is not lost. It is made anew after each break, since it does not tell of a subscription
    that it takes for a repeat of the one before. Nothing is queued while the broker is away.

    :param on_up: called each time the broker has (again) subscribed.
    """

    def __init__(self, sockets: Sockets, endpoint: str, on_up: Callable[[], None]) -> None:
        self._sockets = sockets
        self.endpoint = endpoint
        self._where = f"the broker's event port at {endpoint}"
        self._on_up = on_up
        self._loop = asyncio.get_running_loop()
        self._rebuilding: asyncio.TimerHandle | None = None
        self._closed = False
        self.up = False
        self._build()

    @property
    def trouble(self) -> LabmeshError | None:
        """Why events do not get through; None: they do, or nothing is known yet."""
        return None if self.up else self._health.trouble

    def send(self, frames: Sequence[Buffer]) -> bool:
        """Send an event; False: the broker is away, or does not keep up."""
        return self.up and self._channel.send(frames)

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
        self._health = health_of(
            self._where,
            self._sockets.security,
            more_keys=self._sockets.has_more_keys(self.endpoint),
        )
        self._socket, monitor = self._sockets.connect(zmq.XPUB, self.endpoint, EVENTS)
        self._channel = Channel(self._socket, self._take, name=self._where)
        self._monitor = Monitor(monitor, self.endpoint, self._health, self._on_news)

    def _teardown(self, linger_ms: int = 0) -> None:
        self._monitor.close()
        self._channel.close()
        self._sockets.close(self._socket, linger_ms)

    def _take(self, frames: Frames) -> None:
        subscribed = bytes(frames[0][:1]) == b"\x01"
        if subscribed and not self.up and self._rebuilding is None:
            self.up = True
            self._on_up()

    def _on_news(self, news: News | None) -> None:
        if news not in _REBUILD_S:
            return
        self.up = False
        if news == "refused":
            self._sockets.give_up(
                self._socket, self.endpoint, is_other_key=self._health.is_other_key
            )
        if not self._closed:
            self._rebuild(_REBUILD_S[news])

    def _rebuild(self, seconds: float) -> None:
        if self._rebuilding is None:
            self._rebuilding = self._loop.call_later(seconds, self._build_again)

    def _build_again(self) -> None:
        self._teardown()
        try:
            self._build()
        except (LinkLost, AuthenticationError) as exc:
            log.warning("%s", exc)
            self._health.trouble = exc
            self._rebuild(_REBUILD_S["refused"])
