"""A socket of a thread that makes a call and waits for its reply, with no event loop between.

A call that goes as calls do is sent, answered and over in the thread that makes it. What is unusual
is not decided here: a call that was not sent may go another way, and one of which nobody knows how
it stands is settled by a link, which sends it again under its id.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Final

import msgspec

from labmesh.errors import LinkLost, OutcomeUnknown, ProtocolError
from labmesh.protocol.caller import Caller, CallProgress, OpenRequest
from labmesh.protocol.codec import Buffer, Codec
from labmesh.protocol.messages import (
    Alive,
    Batch,
    BatchResult,
    Call,
    Cancel,
    Done,
    Failure,
    Reply,
    Result,
)
from labmesh.transport.call_session import CallSession
from labmesh.transport.channel import Frames
from labmesh.transport.connection import Standing
from labmesh.transport.lines import LineLost, Unsent
from labmesh.transport.link import Link
from labmesh.transport.pending import check_sizes
from labmesh.transport.plain import decode_plain, encode_plain
from labmesh.transport.sockets import Sockets
from labmesh.transport.spinning import Spin

__all__ = ["CallSocket", "Unsent", "Unsettled"]

#: A waiting thread looks around so often: has the link changed, was the client closed?
_SLICE_MS: Final = 100
_SLICE_S: Final = _SLICE_MS / 1000
#: A call of which nothing was heard for so long is settled elsewhere: its connection may be dead.
_QUIET_S = 1.5
#: A socket that takes nothing for so long, while a link reaches the node, makes room for another.
_BLOCKED_S = 2.0
#: A connection that was not used for so long is looked at first: it may be at its end.
_FRESH_S: Final = 0.01
#: What takes a call back gets so long to leave, when its socket is closed.
_LINGER_MS = 200

_pack = msgspec.msgpack.Encoder().encode


class Unsettled(Exception):
    """The call was sent, and nobody here can tell how it stands.

    :param sent_at: when, in monotonic time.
    :param heard_at: when it was heard of last; by default never.
    :param state: how it stood then.
    """

    def __init__(
        self,
        why: str,
        sent_at: float,
        heard_at: float | None = None,
        state: CallProgress = "",
    ) -> None:
        super().__init__(why)
        self.sent_at = sent_at
        self.heard_at = sent_at if heard_at is None else heard_at
        self.state = state


class CallSocket:
    """One connection, for one thread at a time.

    :param session: of the client whose calls these are.
    :param is_ending: asked now and then: is the wait to end, since the client does?
    :raises LinkLost: this process has as many files open as it may.
    """

    def __init__(
        self,
        sockets: Sockets,
        endpoint: str,
        session: CallSession,
        is_ending: Callable[[], bool],
    ) -> None:
        self.endpoint = endpoint
        #: the thread that has it; 0: none
        self.thread = 0
        #: since when it has taken nothing (monotonic); 0: it does
        self.blocked_at = time.monotonic()
        self.closed = False
        self._session, self._is_ending = session, is_ending
        self._line = sockets.lend(endpoint)
        # By when the call that is under way is over, and when one was that was answered at once.
        self._deadline, self._used_at = 0.0, 0.0
        self._codec = Codec((Result, Failure, Alive, BatchResult, Done))
        self._spin = Spin()
        self._patience_ms = _SLICE_MS
        self._line.be_patient(_SLICE_MS)

    @property
    def is_open(self) -> bool:
        """A call can be sent."""
        return self._line.is_open

    @property
    def is_due(self) -> bool:
        """Whether :meth:`tend` may have something to do; asked in any thread."""
        return self._line.is_due

    def tend(self) -> None:
        """Do what is due while nobody waits for a reply."""
        self._line.tend()
        if self._line.closed:
            self._make_room(time.monotonic())

    def close(self, linger_ms: int = 0) -> None:
        """Twice is fine."""
        self.closed = True
        self._line.close(linger_ms)

    def ask(self, request: Call | Batch, link: Link, standing: Standing, deadline: float) -> Reply:
        """Send a call and wait for its reply; a sign of life a second keeps it open.

        Whatever interrupts the wait, such as Ctrl-C, takes the call back and is raised at once.

        :param request: as it is to be sent, with everything filled in.
        :param link: to the node, whose ``standing`` the request was made from.
        :param deadline: the request's, in our monotonic time.
        :raises Unsent: nothing was sent.
        :raises Unsettled: nobody can tell (here) how the call stands.
        :raises OutcomeUnknown: its deadline has come, and it may have begun.
        :raises LinkLost: the client was closed meanwhile.
        :raises ProtocolError: a value cannot be encoded; nothing was sent.
        """
        frames = self._encoded(request)
        sent_at = time.monotonic()
        self._deadline = deadline
        try:
            self._send(frames, sent_at)
            reply = None
            if deadline - sent_at > _SLICE_S:
                # Most calls are over at once, and cost no more than this.
                if self._spin.pays:
                    self._line.look(self._spin, sent_at)
                reply = self._receive(request.id)
                self._used_at = time.monotonic()
                self._spin.came(self._used_at - sent_at)
            if reply is not None and type(reply) is not Alive:
                return reply
            return self._wait(_OpenCall(request, link, standing, deadline, sent_at), reply)
        except (Unsent, OutcomeUnknown):
            raise
        except Unsettled:
            self.close()
            raise
        except (LineLost, ProtocolError) as exc:
            self.close()
            if self._is_ending():
                raise _lost() from exc
            raise Unsettled(str(exc), sent_at) from exc
        except BaseException:
            # Whatever else comes, nobody uses it again: it may be in the middle of a message.
            self.closed = True
            # Half a message must not be completed by another one.
            if self._line.is_whole:
                self._take_back(request)
            self.close(_LINGER_MS)
            raise

    # ── one message ─────────────────────────────────────────────────────────────────────────────

    def _encoded(self, request: Call | Batch) -> list[Buffer]:
        plain = encode_plain(request) if type(request) is Call else None
        if plain is not None:
            return plain
        frames = self._codec.encode(request)
        if len(frames) > 1:
            check_sizes(frames)
        return frames

    def _send(self, frames: list[Buffer], now: float) -> None:
        try:
            if now - self._used_at > _FRESH_S:
                self._line.tend()
            self._line.send(frames, self._gives_up)
        except Unsent:
            self._make_room(now)
            self.blocked_at = self.blocked_at or now
            raise
        self.blocked_at = 0.0

    def _make_room(self, now: float) -> None:
        """It takes nothing: shall another one be made instead of it?"""
        was_of_use = not self.blocked_at
        if was_of_use and self._line.closed:
            self.close()
        if not was_of_use and now - self.blocked_at > _BLOCKED_S:
            self.close()

    def _gives_up(self) -> bool:
        return self._is_ending() or time.monotonic() >= self._deadline

    def _receive(self, call_id: str) -> Reply | None:
        """The next reply to this call; None: none came for a while. Those to others are late."""
        until = 0.0
        while (frames := self._line.receive()) is not None:
            if len(frames) == 1:
                result = decode_plain(frames[0])
                if result is not None and result.id == call_id:
                    return result
            message = self._reply_in(frames, call_id)
            if message is not None:
                return message
            # Whoever sends them without end does not keep this call beyond its deadline.
            now = time.monotonic()
            until = until or now + _SLICE_S
            if now > until:
                break
        return None

    def _reply_in(self, frames: Frames, call_id: str) -> Reply | None:
        """The message, when it is a reply to this call."""
        try:
            message = self._codec.decode(frames).message
        except ProtocolError as exc:
            if exc.detail.get("id", call_id) != call_id:
                return None
            raise
        return message if isinstance(message, Reply) and message.id == call_id else None

    # ── a call that lasts ───────────────────────────────────────────────────────────────────────

    def _wait(self, call: _OpenCall, reply: Reply | None) -> Reply:
        try:
            while True:
                now = time.monotonic()
                if reply is not None and call.heard(reply, now):
                    return reply
                error = call.expired(now)
                if error is not None:
                    self._take_back(call.request)
                    self._session.lost_sight(call.request.id, call.sent_at)
                    raise error
                if self._is_ending():
                    raise _lost()
                call.is_answered(self._line.arrived_at)
                call.check(now)
                self._wait_at_most(call.patience_ms(now))
                reply = self._receive(call.request.id)
        finally:
            self._wait_at_most(_SLICE_MS)

    def _wait_at_most(self, patience_ms: int) -> None:
        if patience_ms != self._patience_ms and not self._line.closed:
            self._patience_ms = patience_ms
            self._line.be_patient(patience_ms)

    def _take_back(self, request: Call | Batch) -> None:
        """A call that still waits in its relay's queue must not run any more."""
        cancel = Cancel(
            id=self._session.next_id(),
            target=request.target,
            session=request.session,
            call=request.id,
        )
        # Where nothing can be sent there is nobody to tell: the relay's own deadline holds.
        self._deadline = 0.0
        with contextlib.suppress(Unsent):
            self._line.send([_pack(cancel)], self._gives_up)


class _OpenCall:
    """A call that was sent and is not answered at once."""

    def __init__(
        self,
        request: Call | Batch,
        link: Link,
        standing: Standing,
        deadline: float,
        sent_at: float,
    ) -> None:
        self.request = request
        self.sent_at = sent_at
        self._link, self._epoch = link, standing.epoch
        what = request.method if type(request) is Call else "a batch"
        self._caller = Caller[OpenRequest](
            link.where, relay=standing.node_id, session=request.session
        )
        self._open = OpenRequest(request.id, deadline, what, resumable=True)
        self._caller.open(self._open)
        self._caller.sent(self._open, sent_at, standing.epoch)

    def heard(self, reply: Reply, now: float) -> bool:
        """Take a reply to it; True: it ends the call."""
        return self._caller.heard(reply, now) is not None

    def is_answered(self, instant: float) -> None:
        """Some of its reply, or of another one, came then: a large one takes its time."""
        self._open.heard_at = max(self._open.heard_at, instant)

    def expired(self, now: float) -> OutcomeUnknown | None:
        """Why it is over now, without an answer."""
        for _, error in self._caller.expire(now):
            assert isinstance(error, OutcomeUnknown)
            return error
        return None

    def check(self, now: float) -> None:
        """Is it worth to wait on? Raises :class:`Unsettled`."""
        standing, heard_at = self._link.standing, self._open.heard_at
        why = ""
        if not standing.up or standing.epoch != self._epoch:
            why = f"the link to {self._link.where} has changed"
        elif now - heard_at > _QUIET_S:
            why = f"{self._link.where} is quiet"
        if why:
            raise Unsettled(why, self.sent_at, heard_at, self._open.state)

    def patience_ms(self, now: float) -> int:
        """How long to wait before the next look."""
        ends_at = self._caller.next_deadline()
        left_s = _SLICE_S if ends_at is None else min(_SLICE_S, ends_at - now)
        return max(1, int(1000 * left_s))


def _lost() -> LinkLost:
    return LinkLost("the mesh was closed while this was open, and its outcome is unknown")
