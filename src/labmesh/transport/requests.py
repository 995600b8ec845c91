"""Open requests of one connection: how they are sent, and what ends each of them."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from labmesh.errors import (
    LabmeshError,
    NotSent,
    OutcomeUnknown,
    ProtocolError,
    StaleEpoch,
    error_from_wire,
)
from labmesh.protocol.caller import Caller, Ended, given_up_at
from labmesh.protocol.codec import Buffer, Decoded
from labmesh.protocol.messages import (
    Cancel,
    Failure,
    Invocation,
    Item,
    Ping,
    Pong,
    Reply,
    Request,
    Result,
    SessionRequest,
)
from labmesh.protocol.packs import is_pack, read_results, unpack
from labmesh.protocol.seldom import Seldom
from labmesh.transport.call_session import CallSession
from labmesh.transport.channel import Frames
from labmesh.transport.connection import PING, Connection
from labmesh.transport.pending import Pending, check_sizes, together
from labmesh.transport.plain import decode_plain
from labmesh.transport.sockets import Sockets

__all__ = ["Requests"]

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Reply)


class Requests(Connection):
    """Requests that are sent over a connection, each of which ends once; :class:`Link` makes them.

    A call that was sent when the connection breaks is sent again, under its id, as soon as the link
    to the same incarnation of the node is up again. What begins in one turn of the loop is sent
    together.

    :param caller: who calls, for those who find the node busy; it and the session are told to the
        node before anything else. Empty: neither is.
    """

    def __init__(
        self,
        sockets: Sockets,
        endpoint: str,
        *,
        where: str,
        target: str = "",
        on_change: Callable[[], None] | None = None,
        session: CallSession | None = None,
        caller: str = "",
        has_lane: bool = False,
    ) -> None:
        self._introduced_as = caller
        self._session = CallSession() if session is None else session
        self._caller: Caller[Pending] = Caller(
            f"{where} at {endpoint}", relay=target, session=self._session.token
        )
        #: what waits for the link, or for room in its socket, in this order
        self._outbox: dict[Pending, None] = {}
        #: what needs no answer, and waits for room before those
        self._untold: list[list[Buffer]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._flushing = False
        self._warnings = Seldom()
        super().__init__(
            sockets, endpoint, where=where, target=target, on_change=on_change, has_lane=has_lane
        )

    # ── sending ─────────────────────────────────────────────────────────────────────────────────

    def _begin(self, pending: Pending, now: float) -> None:
        """Send it as soon as it can be; from now on its future ends, by its deadline.

        :raises LabmeshError: it cannot be sent; nothing is left open.
        """
        if not self.up:
            hopeless = self._hopeless()
            if hopeless is not None or not pending.patient:
                raise hopeless or self._not_sent()
        if self.up and pending.frames is None:
            pending.frames = self._encoded(self._addressed(pending), pending.body)
        self._start(pending, now)

    def _start(self, pending: Pending, now: float) -> None:
        caller, up = self._caller, self.up
        alone = up and not caller.busy
        caller.open(pending)
        if alone and self._road.send(pending.frames or ()):
            self._were_sent((pending,), now)
        else:
            # Many at a time: what begins in one turn of the loop leaves together.
            self._outbox[pending] = None
            if up and not self._flushing:
                self._flushing = True
                self._loop.call_soon(self._flush)
        if caller.quiet_until < self._timer_at:
            self._arm()

    def _flush(self) -> None:
        """Send what waits, as much as there is room for."""
        self._flushing = False
        if not self.up or (self._untold and not self._all_told()):
            return
        waiting = [
            pending
            for pending in list(self._outbox)
            if pending.frames is not None or self._made_ready(pending)
        ]
        messages = together(waiting)
        count = self._road.send_all([frames for frames, _ in messages])
        now = time.monotonic()
        if count == len(messages):
            self._outbox.clear()
            self._were_sent(waiting, now)
        else:
            for _, sent in messages[:count]:
                for pending in sent:
                    del self._outbox[pending]
                self._were_sent(sent, now)
        self._arm()

    def _made_ready(self, pending: Pending) -> bool:
        """Make its frames; False: they cannot be made, and it has ended."""
        try:
            pending.frames = self._encoded(self._addressed(pending), pending.body)
        except ProtocolError as exc:
            self._caller.withdraw(pending)
            self._fail(pending, exc)
            return False
        return True

    def _were_sent(self, sent: Sequence[Pending], now: float) -> None:
        self._caller.sent_together(sent, now, self.epoch)
        for pending in sent:
            if not pending.resumable:
                pending.frames = None

    def _addressed(self, pending: Pending) -> Request:
        filled: dict[str, Any] = {
            "id": pending.id,
            "target": self.node_id,
            "epoch": self.epoch,
            "deadline": self._clock.translate(pending.deadline),
        }
        if isinstance(pending.request, Invocation):
            filled["arrive_by"] = self._arrive_by(pending.deadline, time.monotonic())
        if isinstance(pending.request, SessionRequest) and not pending.request.session:
            filled["session"] = self._session.token
        return msgspec.structs.replace(pending.request, **filled)

    def _arrive_by(self, deadline: float, now: float) -> float | None:
        """:func:`given_up_at` in the node's clock."""
        instant = given_up_at(deadline, now)
        return None if instant is None else self._clock.translate(instant)

    def _encoded(self, request: Request, body: Buffer | None) -> list[Buffer]:
        frames = self._codec.encode(request, body)
        if len(frames) > 1 and isinstance(request, Invocation):
            check_sizes(frames)
        return frames

    def _tell(self, request: SessionRequest) -> None:
        """Send what needs no answer, if there is a link."""
        if self.up:
            told = msgspec.structs.replace(
                request,
                id=self._session.next_id(),
                target=self.node_id,
                session=self._session.token,
            )
            self._untold.append(self._codec.encode(told))
            self._all_told()

    def _all_told(self) -> bool:
        del self._untold[: self._road.send_all(self._untold)]
        return not self._untold

    def take_back(self, pending: Pending) -> None:
        """The caller gave up: a call that still waits in the relay's queue must not run."""
        self._outbox.pop(pending, None)
        if self._caller.withdraw(pending) and pending.sent and pending.method:
            self._tell(Cancel(id="-", call=pending.id))

    # ── the connection ──────────────────────────────────────────────────────────────────────────

    def _greeting(self) -> Ping:
        if not self._introduced_as:
            return super()._greeting()
        return Ping(id=PING, session=self._session.token, caller=self._introduced_as)

    def _went_up(self) -> None:
        self._resume(time.monotonic())

    def _resume(self, now: float) -> None:
        again, ended = self._caller.restored(self.epoch, now)
        self._end(ended)
        # They were there before all that waits.
        self._outbox = {**dict.fromkeys(again), **self._outbox}
        self._flush()

    def _went_down(self) -> None:
        self._untold.clear()
        for pending in list(self._outbox):
            if pending.sent:
                del self._outbox[pending]
            elif pending.patient:
                pending.frames = None  # the next link may be to another incarnation
            else:
                self._caller.withdraw(pending)
                self._fail(pending, self._not_sent())
        self._end(self._caller.broken(time.monotonic()))
        self._arm()

    def _room_again(self) -> None:
        self._flush()

    def _end_open(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._end(self._caller.close())

    def _wake(self) -> None:
        if self._outbox and not self.up and (hopeless := self._hopeless()) is not None:
            for pending in list(self._outbox):
                self._caller.withdraw(pending)
                self._fail(pending, type(hopeless)(hopeless.text))
        super()._wake()

    # ── replies and deadlines ───────────────────────────────────────────────────────────────────

    def _take(self, frames: Frames) -> None:
        self.heard_at = now = time.monotonic()
        if len(frames) > 1 or not is_pack(frames[0]):
            self._take_message(frames, now)
            return
        results = read_results(frames[0])
        if results is not None:
            self._take_results(results)
            return
        try:
            messages = unpack(frames[0])
        except ProtocolError as exc:
            self._end_unreadable(exc, now)
            return
        for each in messages:
            self._take_message([each], now)

    def _take_results(self, results: Sequence[Result]) -> None:
        answered = self._caller.answered
        for result in results:
            pending = answered(result.id)
            # Its caller may have been cancelled just now.
            if pending is not None and not pending.future.done():
                pending.future.set_result(result)

    def _take_message(self, frames: Frames, now: float) -> None:
        plain = decode_plain(frames[0]) if len(frames) == 1 else None
        if plain is not None:
            self._take_results((plain,))
            return
        try:
            decoded = self._codec.decode(frames)
        except ProtocolError as exc:
            self._end_unreadable(exc, now)
            return
        message = decoded.message
        if not isinstance(message, Reply):
            return
        pending = self._caller.heard(message, now)
        if pending is not None:
            if type(message) is Failure:
                self._failed(pending, message)
            elif pending.stream is not None and type(message) is not Result:
                self._fail(pending, self._unusable(pending, message))
            elif not pending.future.done():
                pending.future.set_result(decoded)
        elif type(message) is Item:
            self._take_item(message)
        elif type(message) is Pong and message.id == PING:
            self._answered(message)

    def _take_item(self, item: Item) -> None:
        pending = self._caller.get(item.id)
        if pending is None or pending.stream is None:
            return
        try:
            pending.stream.take(item)
        except ProtocolError as exc:
            self.take_back(pending)
            self._fail(pending, exc)

    def _failed(self, pending: Pending, failure: Failure) -> None:
        error = error_from_wire(failure.name, failure.text, failure.detail)
        if isinstance(error, StaleEpoch):
            again = self._caller.refused(pending, error)
            if again is None:
                pending.frames, pending.patient = None, True
                self._outbox[pending] = None
                self._distrust()
                return
            error = again
        elif isinstance(error, OutcomeUnknown):
            error.detail = {**self._caller.unknown(pending, "").detail, **error.detail}
        self._fail(pending, error)

    def _end_unreadable(self, exc: ProtocolError, now: float) -> None:
        """The request was answered, but nobody can read how."""
        if self._warnings.due(now) is not None:
            log.warning("%s sent a reply that cannot be read: %s", self.where, exc)
        pending = self._caller.get(str(exc.detail.get("id", "")))
        if pending is not None:
            self._caller.withdraw(pending)
            text = f"the answer of {self.where} cannot be read: {exc}"
            if pending.method:
                self._fail(pending, self._caller.unknown(pending, text))
            else:
                self._fail(pending, ProtocolError(text))

    def _open_reply(
        self, pending: Pending, decoded: Decoded, wanted: type[R] | tuple[type[R], ...]
    ) -> R:
        message: Any = decoded.message
        if isinstance(message, wanted):
            return message
        raise self._unusable(pending, message)

    def _unusable(self, pending: Pending, message: Any) -> LabmeshError:
        """An answer of which nothing can be learnt; a call that it ends may well have run."""
        text = (
            f"{self.where} answered a {type(message).__name__}, which is no answer to this: do "
            "both sides run the same version of labmesh?"
        )
        return self._caller.unknown(pending, text) if pending.method else ProtocolError(text)

    def _end(self, ended: Ended[Pending]) -> None:
        for pending, error in ended:
            self._fail(pending, error)

    def _fail(self, pending: Pending, error: LabmeshError) -> None:
        """End a request that its machine no longer knows."""
        self._outbox.pop(pending, None)
        if isinstance(error, OutcomeUnknown):
            self._session.lost_sight(pending.id, pending.sent_at)
        if not pending.future.done():
            pending.future.set_exception(error)

    def _arm(self) -> None:
        """Have :meth:`_expire` called when the next deadline comes."""
        when = self._caller.next_deadline()
        if when is None or when >= self._timer_at or self._closed:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        self._timer = self._loop.call_later(when - time.monotonic(), self._expire)

    def _expire(self) -> None:
        self._timer, self._timer_at = None, math.inf
        for pending, error in self._caller.expire(time.monotonic()):
            self._fail(pending, self._not_sent() if isinstance(error, NotSent) else error)
            if isinstance(error, OutcomeUnknown):
                self._tell(Cancel(id="-", call=pending.id))
        self._arm()
