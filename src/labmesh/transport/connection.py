"""A connection to one node, that heals by itself and knows when the node is there."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import NamedTuple

import zmq

from labmesh.errors import AuthenticationError, LabmeshError, LinkLost, NotFound, NotSent
from labmesh.protocol.caller import ClockOffset
from labmesh.protocol.codec import Codec
from labmesh.protocol.messages import REPLIES, Ping, Pong
from labmesh.transport.channel import Channel, Frames
from labmesh.transport.lane import Lane
from labmesh.transport.monitor import EVENTS, Monitor, News, health_of
from labmesh.transport.sockets import Sockets
from labmesh.transport.waiters import Waiters

__all__ = ["PING", "Connection", "Standing"]

log = logging.getLogger(__name__)

_REBUILD_S, _REBUILD_MAX_S = 0.1, 2.0
#: A connection whose node does not answer a ping in so long is asked again, then made anew.
_PING_AGAIN_S = 1.0
_PINGS = 3
#: A lane that breaks so often while its connection holds is not opened again.
_LANES = 3
#: How long after the end of the connection its lane is heard; a relay that stops lingers as long.
_LAST_WORDS_S = 0.2
#: The id of the pings of a connection; requests have numbers.
PING = "ping"


class Standing(NamedTuple):
    """What a link knows of the node behind it, at one moment."""

    up: bool
    node_id: str
    epoch: str
    #: seconds that the node's monotonic clock is ahead of ours (a lower bound), once it is known
    ahead_s: float | None


class Connection:
    """A connection to one node, on the running loop; :class:`Link` adds the requests.

    A connection is *up* once the node behind it has answered a ping: from then on its id, epoch and
    clock are known. libzmq reconnects; where it does not (after a refusal), the socket is built
    anew.

    Where there can be a :class:`Lane`, calls go over it. They all go the same way, in order: the
    ping is sent where they will be, and when a lane breaks the link is down until the next ping is
    answered.

    :param where: the other side, as people know it ("relay Inst-0").
    :param target: the id of the node that is meant; another node there is an error. Empty: any.
    :param on_change: called after each change of :attr:`up` or :attr:`trouble`.
    :param has_lane: open a lane where nothing is encrypted.
    """

    def __init__(
        self,
        sockets: Sockets,
        endpoint: str,
        *,
        where: str,
        target: str = "",
        on_change: Callable[[], None] | None = None,
        has_lane: bool = False,
    ) -> None:
        self._sockets = sockets
        self._has_lane = has_lane
        self._lanes_left = 0
        self._lane: Lane | None = None
        self.endpoint = endpoint
        self.where = f"{where} at {endpoint}"
        self.target = target
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._codec = Codec(REPLIES)
        self._clock = ClockOffset()
        self._rebuild_s = _REBUILD_S
        self._rebuilding: asyncio.TimerHandle | None = None
        self._pinging: asyncio.TimerHandle | None = None
        self._hearing_out: asyncio.TimerHandle | None = None
        self._waiters = Waiters()
        self._wrong_node: LabmeshError | None = None
        self._closed = False
        #: the node behind the connection, known while it is up
        self.node_id = ""
        self.epoch = ""
        self.up = False
        #: monotonic time of the last message that came back
        self.heard_at: float | None = None
        self._standing = Standing(False, "", "", None)
        self._build()

    @property
    def trouble(self) -> LabmeshError | None:
        """Why the link is not up; None: it is, or nothing is known yet."""
        return None if self.up else (self._wrong_node or self._health.trouble)

    @property
    def standing(self) -> Standing:
        """What is known of the node, all of the same moment; in any thread."""
        return self._standing

    def close(self) -> None:
        """End what is open and close the socket; twice is fine."""
        if self._closed:
            return
        self._closed, self.up = True, False
        self._stand()
        for handle in (self._rebuilding, self._pinging, self._hearing_out):
            if handle is not None:
                handle.cancel()
        self._end_open()
        self._wake()
        self._teardown()

    async def wait_up(self, timeout: float) -> None:
        """Wait until the node has answered.

        :raises AuthenticationError: as soon as the other side turns out not to accept us.
        :raises NotSent: no link within ``timeout`` seconds; the text says why.
        """
        deadline = time.monotonic() + timeout
        while not self.up:
            if (hopeless := self._hopeless()) is not None:
                raise hopeless
            if time.monotonic() >= deadline:
                raise self._not_sent()
            await self._waiters.wait(deadline)

    # ── for the requests ────────────────────────────────────────────────────────────────────────

    def _went_up(self) -> None:
        """The node has answered."""
        raise NotImplementedError

    def _went_down(self) -> None:
        """The connection broke."""
        raise NotImplementedError

    def _room_again(self) -> None:
        """The socket takes messages again."""
        raise NotImplementedError

    def _end_open(self) -> None:
        """The connection is closed for good."""
        raise NotImplementedError

    def _take(self, frames: Frames) -> None:
        """A message came in."""
        raise NotImplementedError

    def _distrust(self) -> None:
        """The node says that it is not the one that was known: ask it who it is."""
        if self.up:
            self._go_down()
            self._ping(_PINGS)

    def _hopeless(self) -> LabmeshError | None:
        """Why waiting for the link is of no use."""
        if self._closed:
            return NotSent(f"the link to {self.where} is closed")
        trouble = self.trouble
        if isinstance(trouble, AuthenticationError | NotFound):
            return type(trouble)(trouble.text)
        return None

    def _not_sent(self) -> NotSent:
        if self.up:
            return NotSent(
                f"{self.where} does not keep up with what is sent to it; this was not sent: send "
                "less at a time"
            )
        if self.trouble is not None:
            return NotSent(self.trouble.text, **self.trouble.detail)
        return NotSent(
            f"{self.where} does not answer: is it running, and does a firewall let this host reach "
            "it? (labmesh doctor)"
        )

    # ── the socket ──────────────────────────────────────────────────────────────────────────────

    def _build(self) -> None:
        self._rebuilding = None
        self._health = health_of(
            self.where,
            self._sockets.security,
            more_keys=self._sockets.has_more_keys(self.endpoint),
        )
        self._socket, monitor = self._sockets.connect(zmq.DEALER, self.endpoint, EVENTS)
        self._channel = Channel(
            self._socket, self._take, name=self.where, on_writable=self._room_again
        )
        #: over which calls go
        self._road: Channel | Lane = self._channel
        self._monitor = Monitor(monitor, self.endpoint, self._health, self._on_news)

    def _teardown(self) -> None:
        self._leave_lane()
        self._monitor.close()
        self._channel.close()
        self._sockets.close(self._socket)

    def _on_news(self, news: News | None) -> None:
        if self._closed:
            return
        if news == "up":
            self._rebuild_s = _REBUILD_S
            self._lanes_left = _LANES if self._has_lane else 0
            if self._hearing_out is not None:
                self._go_down()
            self._find_road()
        elif news is not None:
            # Replies that came in before the break are still good.
            while self._channel.drain():
                continue
            if self._lane is not None and self.up:
                self._hear_out()
            else:
                self._leave_lane()
                self._go_down()
            if news == "refused":
                self._sockets.give_up(
                    self._socket, self.endpoint, is_other_key=self._health.is_other_key
                )
                self._rebuild()
        self._wake()

    def _ping(self, tries: int) -> None:
        if self._pinging is not None:
            self._pinging.cancel()
            self._pinging = None
        if self.up or self._closed or not self._health.up:
            return
        if tries == 0:
            log.info("%s is connected, but does not answer: connecting anew", self.where)
            self._rebuild()
            return
        if tries == 1 and self._lane is not None:
            log.info("nothing is answered over the lane to %s: calls go without it", self.where)
            self._lanes_left = 0
            self._leave_lane()
        self._road.send(self._codec.encode(self._greeting()))
        self._pinging = self._loop.call_later(_PING_AGAIN_S, self._ping, tries - 1)

    def _greeting(self) -> Ping:
        """What the node is asked first."""
        return Ping(id=PING)

    def _rebuild(self) -> None:
        if self._rebuilding is None:
            self._rebuilding = self._loop.call_later(self._rebuild_s, self._build_again)
            self._rebuild_s = min(2 * self._rebuild_s, _REBUILD_MAX_S)

    def _build_again(self) -> None:
        trouble = self._health.trouble
        self._teardown()
        try:
            self._build()
        except (LinkLost, AuthenticationError) as exc:
            log.warning("%s", exc)
            trouble = exc
            self._rebuild()
        # The reason stands until something better is known.
        self._health.trouble = trouble

    # ── the lane ────────────────────────────────────────────────────────────────────────────────

    def _find_road(self) -> None:
        """Ask the node where calls will be sent: over a lane, if one can be opened."""
        self._leave_lane()
        if self._closed or not self._health.up:
            return
        address = self._sockets.plain_address(self.endpoint) if self._lanes_left else None
        if address is not None:
            self._lanes_left -= 1
            try:
                self._lane = Lane(
                    address,
                    name=self.where,
                    on_message=self._take,
                    on_ready=self._lane_is_ready,
                    on_end=self._lane_has_ended,
                    on_room=self._room_again,
                )
            except OSError as exc:
                log.info("no lane to %s: %s", self.where, exc)
        if self._lane is None:
            self._ping(_PINGS)

    def _leave_lane(self) -> None:
        if self._lane is not None:
            self._lane.close()
            self._lane, self._road = None, self._channel

    def _lane_is_ready(self) -> None:
        assert self._lane is not None
        self._road = self._lane
        self._ping(_PINGS)

    def _lane_has_ended(self, why: str) -> None:
        assert self._lane is not None
        log.info("the lane to %s has ended: %s", self.where, why)
        if not self._lane.ready:
            self._lanes_left = 0  # nor would the next one come about
        self._leave_lane()
        if self.up or self._hearing_out is not None:
            self._go_down()
        self._find_road()

    def _hear_out(self) -> None:
        """The connection has ended: wait for the end of its lane, too."""
        self.up = False
        self._stand()
        self._hearing_out = self._loop.call_later(_LAST_WORDS_S, self._go_down)

    # ── up and down ─────────────────────────────────────────────────────────────────────────────

    def _go_down(self) -> None:
        was_up, self.up = self.up or self._hearing_out is not None, False
        if self._hearing_out is not None:
            self._hearing_out.cancel()
            self._hearing_out = None
            self._leave_lane()
        self._stand()
        self._went_down()
        if was_up:
            log.info("lost the link to %s", self.where)
            self._wake()

    def _answered(self, pong: Pong) -> None:
        if not self._health.up:
            return
        if self.target and pong.node_id != self.target:
            self._wrong_node = NotFound(
                f"{pong.node_id} answers at {self.endpoint}, not {self.target}: its address was "
                "taken over; look it up again at the broker"
            )
            self._wake()
            return
        if pong.epoch != self.epoch:
            self._clock.forget()
        self._clock.learn(pong.clock, time.monotonic())
        self._wrong_node = None
        self.node_id, self.epoch = pong.node_id, pong.epoch
        self.up = True
        self._stand()
        log.info("linked to %s", self.where)
        self._went_up()
        self._wake()

    def _stand(self) -> None:
        self._standing = Standing(self.up, self.node_id, self.epoch, self._clock.ahead_s)

    def _wake(self) -> None:
        self._waiters.wake()
        if self._on_change is not None and not self._closed:
            self._on_change()
