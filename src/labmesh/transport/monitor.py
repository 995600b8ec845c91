"""What libzmq says about a socket's connections, as a few plain states."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Literal

import zmq
from zmq.utils.monitor import parse_monitor_message

from labmesh.errors import AuthenticationError, LabmeshError, LinkLost
from labmesh.transport.channel import Channel, Frames
from labmesh.transport.greeting import mechanism_at

__all__ = ["EVENTS", "Health", "Monitor", "News", "read_event"]

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


class Health:
    """Turns monitor events of one connecting socket into news and a reason.

    :param where: the other side, as people know it.
    :param encrypted: this side uses CURVE.
    :param more_keys: the server may have another key than the one that is tried.
    """

    def __init__(self, where: str, *, encrypted: bool, more_keys: bool = False) -> None:
        self.where = where
        self._encrypted = encrypted
        self._more_keys = more_keys
        #: the server has another key than the one that was expected of it
        self.is_other_key = False
        self._broken_handshakes = 0
        self._connected_at = 0.0
        self.up = False
        self.trouble: LabmeshError | None = None

    def take(self, event: int, value: int, now: float) -> News | Literal["broken"] | None:
        """One monitor event.

        ``refused``: this socket is of no use, try later with a new one. ``broken``: one handshake
        after the other breaks off; the server's greeting may tell why, see :meth:`explain`.
        """
        if event == zmq.EVENT_CONNECTED:
            self._connected_at = now
            return None
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.up, self.trouble, self._broken_handshakes = True, None, 0
            return "up"
        if event == zmq.EVENT_DISCONNECTED:
            was_up, self.up = self.up, False
            return "down" if was_up else None
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self.trouble = self._refusal()
            return "refused"
        if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            self.trouble = self._mismatch(value)
            return "refused"
        if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            self._broken_handshakes += now - self._connected_at < _AT_ONCE_S
            if self._broken_handshakes >= _HANDSHAKES_BEFORE_QUESTION:
                self._broken_handshakes = 0
                return "broken"
        elif event == zmq.EVENT_CONNECT_RETRIED and self.trouble is None:
            self.trouble = LinkLost(f"nobody answers at {self.where}: is it running?")
        return None

    def explain(self, mechanism: str) -> News | None:
        """Why handshakes break, when this is the mechanism of the server's greeting (or empty)."""
        if self.up:
            return None
        if mechanism == "CURVE" and self._encrypted:
            self.is_other_key = True
            if self._more_keys:
                self.trouble = LinkLost(f"{self.where} has another key; the next one is tried")
                return "refused"
            self.trouble = AuthenticationError(
                f"{self.where} has another network password (each handshake fails): "
                "LMH_NETWORK_PASSWORD and LMH_NETWORK must be the same on every node"
            )
            return "refused"
        if mechanism == ("NULL" if self._encrypted else "CURVE"):
            self.trouble = self._mismatch(_MECHANISM_MISMATCH)
            return "refused"
        self.trouble = LinkLost(
            f"something answers at {self.where}, but breaks every handshake off: is another "
            "program using this port, or is nothing behind it yet?"
        )
        return None

    def _refusal(self) -> LabmeshError:
        if self._encrypted:
            return AuthenticationError(
                f"{self.where} does not accept the key of this side: wrong network password? "
                "LMH_NETWORK_PASSWORD and LMH_NETWORK must be the same on every node"
            )
        return AuthenticationError(
            f"{self.where} refused this host: it runs without a password (protected mode) and "
            "admits only its own machine. Do one of: set LMH_NETWORK_PASSWORD to the same word on "
            "every node; or set LMH_INSECURE=1 there (insecure = true in its [security] table) if "
            "everybody on this network is trusted"
        )

    def _mismatch(self, value: int) -> LabmeshError:
        if value != _MECHANISM_MISMATCH:
            return LinkLost(
                f"{self.where} does not speak labmesh (ZeroMQ protocol error {value:#x}): "
                "is another program using this port?"
            )
        if self._encrypted:
            return AuthenticationError(
                f"{self.where} runs without a password, but LMH_NETWORK_PASSWORD is set here: set "
                "it there too, or unset it here"
            )
        return AuthenticationError(
            f"{self.where} wants the network password: set LMH_NETWORK_PASSWORD here to the word "
            "that its network uses"
        )


class Monitor:
    """Watches one connecting socket on the running loop.

    :param socket: the monitor that came with the connecting socket.
    :param on_news: called with ``up``, ``down`` or, as the last news, ``refused``; and after each
        change of the reason with None.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        health: Health,
        on_news: Callable[[News | None], None],
    ) -> None:
        self._health = health
        self._on_news = on_news
        self._asking: asyncio.Task[None] | None = None
        self._channel = Channel(socket, self._take, name=f"monitor of {health.where}")

    def close(self) -> None:
        """Stop watching. The sockets are closed together, by whoever made them."""
        self._channel.close()
        if self._asking is not None:
            self._asking.cancel()

    def _take(self, frames: Frames) -> None:
        event, value = read_event(frames)
        before = self._health.trouble
        news = self._health.take(event, value, time.monotonic())
        if news == "broken":
            self._ask(bytes(frames[1]).decode("utf-8", "replace"))
        else:
            self._tell(news, before)

    def _tell(self, news: News | None, before: LabmeshError | None) -> None:
        if news == "refused":
            self.close()
        if news is not None or self._health.trouble is not before:
            self._on_news(news)

    def _ask(self, endpoint: str) -> None:
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(
                self._explain(endpoint), name=f"greeting of {self._health.where}"
            )

    async def _explain(self, endpoint: str) -> None:
        before = self._health.trouble
        self._tell(self._health.explain(await mechanism_at(endpoint)), before)


def read_event(frames: Frames) -> tuple[int, int]:
    """The event and its value out of a monitor message."""
    parsed = parse_monitor_message([bytes(frame) for frame in frames])
    return int(parsed["event"]), int(parsed["value"])
