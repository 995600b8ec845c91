"""What libzmq says about a socket's connections, as a few plain states."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import time
from collections.abc import Callable
from typing import Literal

import zmq
from zmq.utils.monitor import parse_monitor_message

from labmesh.errors import LabmeshError, LinkLost
from labmesh.protocol.addresses import parse_connect
from labmesh.transport import reasons
from labmesh.transport.channel import Channel, Frames
from labmesh.transport.greeting import Greeting, greeting_at
from labmesh.transport.keys import Mode, Security

__all__ = ["EVENTS", "Health", "Monitor", "News", "health_of", "read_event"]

News = Literal["up", "down", "refused"]

EVENTS = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_CONNECT_RETRIED
)
_MECHANISM_MISMATCH = 0x11000002
#: A server that is just stopping can break one handshake; a wrong key breaks each of them, at once.
#: (A stopped process breaks them too, but only after the handshake's time limit.)
_HANDSHAKES_BEFORE_QUESTION = 3
_AT_ONCE_S = 2.0
#: A connection of which nothing was heard for so long is looked at from outside.
_QUIET_S = 0.6
#: While nobody answers, who has the name of a host looked up again so often.
_ASK_AGAIN_S = 5.0


class Health:
    """Turns monitor events of one connecting socket into news and a reason.

    :param where: the other side, as people know it.
    :param mode: how this side is secured.
    :param own: in mode *keys* the user id of this side.
    :param more_keys: the server may have another key than the one that is tried.
    """

    def __init__(
        self, where: str, *, mode: Mode = "open", own: str = "", more_keys: bool = False
    ) -> None:
        self.where = where
        self._mode: Mode = mode
        self._own = own
        self._more_keys = more_keys
        #: the server has another key than the one that was expected of it
        self.is_other_key = False
        self._broken_handshakes = 0
        self._connected_at = 0.0
        self._is_reached = self._was_hung_up_on = False
        self.up = False
        self.trouble: LabmeshError | None = None

    def take(self, event: int, value: int, now: float) -> News | Literal["broken"] | None:
        """One monitor event.

        ``refused``: this socket is of no use, try later with a new one. ``broken``: one handshake
        after the other breaks off; the server's greeting may tell why, see :meth:`explain`.
        """
        if event == zmq.EVENT_CONNECTED:
            self._connected_at, self._is_reached = now, True
            return None
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.up, self.trouble, self._broken_handshakes = True, None, 0
            return "up"
        if event == zmq.EVENT_DISCONNECTED:
            was_up, self.up = self.up, False
            self._was_hung_up_on = not was_up
            return "down" if was_up else None
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self.trouble = reasons.refusal(self.where, self._mode, self._own, value)
            return "refused"
        if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            self.trouble = self._wrong_protocol(value)
            return "refused"
        if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            self._broken_handshakes += now - self._connected_at < _AT_ONCE_S
            if self._broken_handshakes >= _HANDSHAKES_BEFORE_QUESTION:
                self._broken_handshakes = 0
                return "broken"
        elif event == zmq.EVENT_CONNECT_RETRIED:
            # It also comes after a connection that was made, and broke.
            if self.trouble is None and not self._is_reached:
                self.trouble = reasons.nobody(self.where)
            self._is_reached = False
        return None

    def explain(self, met: Greeting, endpoint: str, *, broken: bool) -> News | None:
        """Why nothing comes about, when this was met at ``endpoint``.

        :param broken: handshakes broke; else nothing was heard of one.
        """
        if self.up:
            return None
        ours, others = ("NULL", "CURVE") if self._mode == "open" else ("CURVE", "NULL")
        if met.mechanism == ours and not broken and not self._was_hung_up_on:
            return None  # it may just be slow
        if met.mechanism == ours == "CURVE" and broken:
            self.is_other_key = True
            if self._more_keys:
                self.trouble = LinkLost(f"{self.where} has another key; the next one is tried")
                return "refused"
            self.trouble = reasons.other_key(self.where, self._mode)
            return "refused"
        if met.mechanism == others:
            self.trouble = reasons.mismatch(self.where, self._mode, self._own)
            return "refused"
        trouble = reasons.not_reached(self.where, endpoint, met)
        if self.trouble is None or self.trouble.text != trouble.text:
            self.trouble = trouble
        # After some of these libzmq does not try again, and does not say so.
        return "refused" if met.found in ("other", "ZeroMQ") else None

    def _wrong_protocol(self, value: int) -> LabmeshError:
        if value == _MECHANISM_MISMATCH:
            return reasons.mismatch(self.where, self._mode, self._own)
        return reasons.wrong_protocol(self.where, value)


def health_of(where: str, security: Security, *, more_keys: bool = False) -> Health:
    """The health of a connection of a node that is secured like this."""
    own = "" if security.guard is None else security.guard.user
    return Health(where, mode=security.mode, own=own, more_keys=more_keys)


class Monitor:
    """Watches one connecting socket on the running loop.

    :param socket: the monitor that came with the connecting socket.
    :param endpoint: where that one is connected to.
    :param on_news: called with ``up``, ``down`` or, as the last news, ``refused``; and after each
        change of the reason with None.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        endpoint: str,
        health: Health,
        on_news: Callable[[News | None], None],
    ) -> None:
        self._endpoint = endpoint
        self._health = health
        self._on_news = on_news
        self._asking: asyncio.Task[None] | None = None
        # A name may be unknown, which libzmq does not tell: that is asked with the first failure.
        self._asked_at = -math.inf if _is_name(endpoint) else time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._quiet = self._loop.call_later(_QUIET_S, self._after_quiet)
        self._channel = Channel(socket, self._take, name=f"monitor of {health.where}")

    def close(self) -> None:
        """Stop watching. The sockets are closed together, by whoever made them."""
        self._channel.close()
        self._quiet.cancel()
        if self._asking is not None:
            self._asking.cancel()

    def _take(self, frames: Frames) -> None:
        event, value = read_event(frames)
        before = self._health.trouble
        now = time.monotonic()
        news = self._health.take(event, value, now)
        if news == "broken":
            self._ask(now, broken=True)
            return
        if event == zmq.EVENT_CONNECT_RETRIED and now - self._asked_at > _ASK_AGAIN_S:
            self._ask(now, broken=False)
        self._tell(news, before)

    def _after_quiet(self) -> None:
        if not self._health.up and self._health.trouble is None:
            self._ask(time.monotonic(), broken=False)

    def _tell(self, news: News | None, before: LabmeshError | None) -> None:
        if news == "refused":
            self.close()
        if news is not None or self._health.trouble is not before:
            self._on_news(news)

    def _ask(self, now: float, *, broken: bool) -> None:
        if self._asking is None or self._asking.done():
            self._asked_at = now
            self._asking = self._loop.create_task(
                self._explain(broken), name=f"greeting of {self._health.where}"
            )

    async def _explain(self, broken: bool) -> None:
        met = await greeting_at(self._endpoint)
        before = self._health.trouble
        news = self._health.explain(met, self._endpoint, broken=broken)
        self._asking = None
        self._tell(news, before)


def _is_name(endpoint: str) -> bool:
    host = parse_connect(endpoint).host
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host != "localhost"
    return False


def read_event(frames: Frames) -> tuple[int, int]:
    """The event and its value out of a monitor message."""
    parsed = parse_monitor_message([bytes(frame) for frame in frames])
    return int(parsed["event"]), int(parsed["value"])
