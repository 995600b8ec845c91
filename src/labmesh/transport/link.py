"""The asking side: a DEALER socket to one node, that heals by itself and ends every request."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import zmq

from labmesh.errors import (
    AuthenticationError,
    LabmeshError,
    LinkLost,
    NotFound,
    NotSent,
    OutcomeUnknown,
    ProtocolError,
    TooLarge,
    error_from_wire,
)
from labmesh.protocol.caller import Caller, ClockOffset
from labmesh.protocol.codec import Buffer, Codec, Decoded
from labmesh.protocol.messages import REPLIES, Call, Cancel, Failure, Ping, Pong, Reply, Request
from labmesh.protocol.seldom import Seldom
from labmesh.transport.channel import Channel, Frames
from labmesh.transport.monitor import EVENTS, Health, Monitor, News
from labmesh.transport.sockets import MAX_FRAME_BYTES, Sockets
from labmesh.transport.waiters import Waiters

__all__ = ["Link"]

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Reply)

_REBUILD_S, _REBUILD_MAX_S = 0.1, 2.0
#: A connection whose node does not answer a ping in so long is asked again, then made anew.
_PING_AGAIN_S = 1.0
_PINGS = 3
_PING = "ping"


class Link:
    """Requests to one node over one connection, on the running loop.

    A link is *up* once the node behind it has answered a ping: from then on its id, epoch and
    clock are known, so that each request can name its target and its deadline. libzmq reconnects;
    where it does not (after a refusal), the socket is built anew.

    :param where: the other side, as people know it ("relay Inst-0").
    :param target: the id of the node that is meant; another node there is an error. Empty: any.
    :param on_change: called after each change of :attr:`up` or :attr:`trouble`.
    """

    def __init__(
        self,
        sockets: Sockets,
        endpoint: str,
        *,
        where: str,
        target: str = "",
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self._sockets = sockets
        self.endpoint = endpoint
        self.where = f"{where} at {endpoint}"
        self.target = target
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._codec = Codec(REPLIES)
        self._caller = Caller(self.where)
        self._futures: dict[str, asyncio.Future[Decoded]] = {}
        self._ids = itertools.count(1)
        self._clock = ClockOffset()
        self._rebuild_s = _REBUILD_S
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._rebuilding: asyncio.TimerHandle | None = None
        self._pinging: asyncio.TimerHandle | None = None
        self._waiters = Waiters()
        self._wrong_node: LabmeshError | None = None
        self._closed = False
        self._warnings = Seldom()
        #: the node behind the link, known while it is up
        self.node_id = ""
        self.epoch = ""
        self.up = False
        #: monotonic time of the last message that came back
        self.heard_at: float | None = None
        self._build()

    @property
    def trouble(self) -> LabmeshError | None:
        """Why the link is not up; None: it is, or nothing is known yet."""
        return None if self.up else (self._wrong_node or self._health.trouble)

    def close(self) -> None:
        """End open requests (as not sent, or lost) and close the socket; twice is fine."""
        if self._closed:
            return
        self._closed, self.up = True, False
        for handle in (self._timer, self._rebuilding, self._pinging):
            if handle is not None:
                handle.cancel()
        self._end(self._caller.lost())
        self._end(
            [
                (request_id, NotSent(f"the link to {self.where} was closed; nothing was sent"))
                for request_id in self._futures
            ]
        )
        self._wake()
        self._teardown()

    async def wait_up(self, timeout: float) -> None:
        """Wait until the node has answered.

        :raises AuthenticationError: as soon as the other side turns out not to accept us.
        :raises NotSent: no link within ``timeout`` seconds; the text says why.
        """
        await self._wait_up(time.monotonic() + timeout)

    async def request(
        self,
        request: Request,
        reply: type[R] | tuple[type[R], ...],
        *,
        timeout: float,
        body: Buffer | None = None,
    ) -> R:
        """Send a request (its id, target, epoch and deadline are filled in) and await its reply.

        Cancelling the caller takes a queued call back.

        :param timeout: seconds; ``math.inf``: as long as it takes.
        :raises LabmeshError: what the other side answered, or what happened to the link.
        :raises ProtocolError: the request cannot be encoded, or the reply is of another type.
        """
        message, _ = await self.request_body(request, reply, timeout=timeout, body=body)
        return message

    async def request_body(
        self,
        request: Request,
        reply: type[R] | tuple[type[R], ...],
        *,
        timeout: float,
        body: Buffer | None = None,
        patient: bool = True,
    ) -> tuple[R, memoryview | None]:
        """Like :meth:`request`, with the buffer that came behind the reply.

        :param patient: False: NotSent, at once, when the link is not up.
        """
        if math.isnan(timeout):
            raise ValueError("a timeout is a number of seconds, not NaN")
        deadline = time.monotonic() + timeout
        request_id = str(next(self._ids))
        future: asyncio.Future[Decoded] = self._loop.create_future()
        method = request.method if isinstance(request, Call) else ""
        self._caller.open(request_id, deadline=deadline, now=time.monotonic(), method=method)
        self._futures[request_id] = future
        self._arm()
        try:
            await self._send(request, request_id, deadline, body, future, patient)
            decoded = await future
        except asyncio.CancelledError:
            self._take_back(request_id, request)
            raise
        finally:
            self._caller.withdraw(request_id)
            self._futures.pop(request_id, None)
            if future.done() and not future.cancelled():
                future.exception()  # looked at, also where something else was raised first
        return self._open_reply(decoded, reply, method)

    async def _send(
        self,
        request: Request,
        request_id: str,
        deadline: float,
        body: Buffer | None,
        future: asyncio.Future[Decoded],
        patient: bool,
    ) -> None:
        while not future.done():
            if not self.up:
                await self._wait_up(deadline if patient else 0.0)
            if time.monotonic() >= deadline:
                raise NotSent(f"the deadline passed before {self.where} could be asked")
            addressed = msgspec.structs.replace(
                request,
                id=request_id,
                target=self.node_id,
                epoch=self.epoch,
                deadline=None if deadline == math.inf else self._clock.translate(deadline),
            )
            frames = self._codec.encode(addressed, body)
            if isinstance(request, Call):
                self._check_sizes(frames)
            if self._channel.send(frames):
                self._caller.sent(request_id, time.monotonic())
                self._arm()
                return
            await self._waiters.wait(deadline)
            if time.monotonic() >= deadline:
                raise self._not_sent()

    def _check_sizes(self, frames: list[Buffer]) -> None:
        """A relay cuts off whoever sends more, and the call would end as nobody knows how."""
        largest = max(memoryview(frame).nbytes for frame in frames)
        limit = MAX_FRAME_BYTES["relay"]
        if largest > limit:
            raise TooLarge(
                f"an argument of {largest} bytes; the limit is {limit}: nothing was sent; split "
                "it, or upload it as a dataset",
                limit=limit,
            )

    def _open_reply(
        self, decoded: Decoded, wanted: type[R] | tuple[type[R], ...], method: str
    ) -> tuple[R, memoryview | None]:
        message: Any = decoded.message
        if isinstance(message, wanted):
            return message, decoded.body
        if isinstance(message, Failure):
            raise error_from_wire(message.name, message.text, message.detail)
        raise _unusable(
            f"{self.where} answered a {type(message).__name__}, which is no answer to this: do "
            "both sides run the same version of labmesh?",
            method,
        )

    def _take_back(self, request_id: str, request: Request) -> None:
        """The caller gave up: a call that still waits in the relay's queue must not run."""
        opened = self._caller.withdraw(request_id)
        if opened is not None and opened.sent and isinstance(request, Call):
            self._cancel(request_id)

    def _cancel(self, call_id: str) -> None:
        if self.up:
            cancel = Cancel(id=str(next(self._ids)), target=self.node_id, call=call_id)
            self._channel.send(self._codec.encode(cancel))

    # ── the connection ──────────────────────────────────────────────────────────────────────────

    def _build(self) -> None:
        self._rebuilding = None
        self._health = Health(self.where, encrypted=self._sockets.security.keys is not None)
        self._socket, monitor = self._sockets.connect(zmq.DEALER, self.endpoint, EVENTS)
        self._channel = Channel(
            self._socket, self._take, name=self.where, on_writable=self._waiters.wake
        )
        self._monitor = Monitor(monitor, self._health, self._on_news)

    def _teardown(self) -> None:
        self._monitor.close()
        self._channel.close()
        self._sockets.close(self._socket)

    def _on_news(self, news: News | None) -> None:
        if self._closed:
            return
        if news == "up":
            self._rebuild_s = _REBUILD_S
            self._ping(_PINGS)
        elif news is not None:
            # Replies that came in before the break are still good.
            while self._channel.drain():
                continue
            self._go_down()
            if news == "refused":
                self._sockets.give_up(self._socket, self.endpoint)
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
        self._channel.send(self._codec.encode(Ping(id=_PING)))
        self._pinging = self._loop.call_later(_PING_AGAIN_S, self._ping, tries - 1)

    def _rebuild(self) -> None:
        if self._rebuilding is None:
            self._rebuilding = self._loop.call_later(self._rebuild_s, self._build_again)
            self._rebuild_s = min(2 * self._rebuild_s, _REBUILD_MAX_S)

    def _build_again(self) -> None:
        trouble = self._health.trouble
        self._teardown()
        try:
            self._build()
        except LinkLost as exc:
            log.warning("%s", exc)
            trouble = exc
            self._rebuild()
        # The reason stands until something better is known.
        self._health.trouble = trouble

    def _go_down(self) -> None:
        was_up, self.up = self.up, False
        self._end(self._caller.lost())
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
        log.info("linked to %s", self.where)
        self._wake()

    def _wake(self) -> None:
        self._waiters.wake()
        if self._on_change is not None and not self._closed:
            self._on_change()

    async def _wait_up(self, deadline: float) -> None:
        while not self.up:
            if self._closed:
                raise NotSent(f"the link to {self.where} is closed")
            trouble = self.trouble
            if isinstance(trouble, AuthenticationError | NotFound):
                raise type(trouble)(trouble.text)
            if time.monotonic() >= deadline:
                raise self._not_sent()
            await self._waiters.wait(deadline)

    def _not_sent(self) -> NotSent:
        if self.up:
            return NotSent(
                f"{self.where} does not keep up with what is sent to it; this was not sent: send "
                "less at a time"
            )
        if self.trouble is not None:
            return NotSent(self.trouble.text)
        return NotSent(
            f"{self.where} does not answer: is it running, and does a firewall let this host reach "
            "it? (labmesh doctor)"
        )

    # ── replies and deadlines ───────────────────────────────────────────────────────────────────

    def _take(self, frames: Frames) -> None:
        self.heard_at = time.monotonic()
        try:
            decoded = self._codec.decode(frames)
        except ProtocolError as exc:
            if self._warnings.due(self.heard_at) is not None:
                log.warning("%s sent a reply that cannot be read: %s", self.where, exc)
            self._end_unreadable(exc)
            return
        message = decoded.message
        if isinstance(message, Pong) and message.id == _PING:
            self._answered(message)
        elif isinstance(message, Reply) and self._caller.heard(message, self.heard_at):
            future = self._futures[message.id]
            if not future.done():  # its caller may have been cancelled just now
                future.set_result(decoded)

    def _end_unreadable(self, exc: ProtocolError) -> None:
        """The request was answered, but nobody can read how."""
        request_id = str(exc.detail.get("id", ""))
        opened = self._caller.withdraw(request_id)
        if opened is None:
            return
        text = f"the answer of {self.where} cannot be read: {exc}"
        self._end([(request_id, _unusable(text, opened.method))])

    def _end(self, ended: list[tuple[str, Any]]) -> None:
        for request_id, error in ended:
            future = self._futures.get(request_id)
            if future is not None and not future.done():
                future.set_exception(error)

    def _arm(self) -> None:
        """Have :meth:`_expire` called when the next deadline comes."""
        when = self._caller.next_deadline()
        if when is None or (self._timer is not None and self._timer_at <= when):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        self._timer = self._loop.call_later(when - time.monotonic(), self._expire)

    def _expire(self) -> None:
        self._timer = None
        for request_id, error in self._caller.expire(time.monotonic()):
            known_better = self._not_sent() if isinstance(error, NotSent) else error
            self._end([(request_id, known_better)])
            if isinstance(error, OutcomeUnknown):
                self._cancel(request_id)
        self._arm()


def _unusable(text: str, method: str) -> LabmeshError:
    """An answer of which nothing can be learnt; a call that it ends may well have run."""
    return OutcomeUnknown(text) if method else ProtocolError(text)
