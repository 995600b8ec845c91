"""A socket of a thread that makes a call and waits for its reply, with no event loop between.

A call that goes as calls do is sent, answered and over in the thread that makes it. What is unusual
is not decided here: a call that was not sent may go another way, and one of which nobody knows how
it stands is settled by a link, which sends it again under its id.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Callable
from typing import Final

import msgspec
import zmq

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
from labmesh.transport.channel import Frames, events_of, receive_rest, send
from labmesh.transport.connection import Standing
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
#: What takes a call back gets so long to leave, when its socket is closed.
_LINGER_MS = 200

#: Plain numbers: each use of pyzmq's enumerations costs time.
_NOBLOCK, _POLLIN, _POLLOUT = int(zmq.NOBLOCK), int(zmq.POLLIN), int(zmq.POLLOUT)

_pack = msgspec.msgpack.Encoder().encode


class Unsent(Exception):
    """Nothing was sent: there is no connection, or it is no call for a socket like this."""


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
        self._socket = sockets.lend(endpoint)
        self._codec = Codec((Result, Failure, Alive, BatchResult, Done))
        self._spin = Spin()
        self._poll = select.poll() if hasattr(select, "poll") else None
        if self._poll is not None:
            self._poll.register(self._socket.FD, select.POLLIN)
        self._patience_ms = _SLICE_MS
        self._socket.rcvtimeo = _SLICE_MS

    def close(self, linger_ms: int = 0) -> None:
        """Twice is fine."""
        self.closed = True
        self._socket.close(linger_ms)

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
        whole = len(frames) == 1
        try:
            self._send(frames, sent_at)
            whole = True
            reply = None
            if deadline - sent_at > _SLICE_S:
                # Most calls are over at once, and cost no more than this.
                if self._spin.pays:
                    self._look(sent_at)
                reply = self._receive(request.id)
                self._spin.came(time.monotonic() - sent_at)
            if reply is not None and type(reply) is not Alive:
                return reply
            return self._wait(_OpenCall(request, link, standing, deadline, sent_at), reply)
        except (Unsent, OutcomeUnknown):
            raise
        except Unsettled:
            self.close()
            raise
        except (zmq.ZMQError, ProtocolError) as exc:
            self.close()
            if self._is_ending():
                raise _lost() from exc
            raise Unsettled(str(exc), sent_at) from exc
        except BaseException:
            # Whatever else comes, nobody uses it again: it may be in the middle of a message.
            self.closed = True
            # Half a message must not be completed by another one.
            if whole:
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
            try:
                if len(frames) == 1:
                    self._socket.send(frames[0], _NOBLOCK)
                else:
                    send(self._socket, frames)
            except zmq.Again:
                # A send does not always look whether a new connection is there; this look does.
                if not events_of(self._socket) & _POLLOUT:
                    raise
                send(self._socket, frames)
        except zmq.ZMQError as exc:
            self.blocked_at = self.blocked_at or now
            if now - self.blocked_at > _BLOCKED_S:
                self.close()
            raise Unsent(str(exc)) from exc
        self.blocked_at = 0.0

    def _look(self, since: float) -> None:
        """Wait a moment for a reply without sleeping; see :meth:`Spin.look`."""
        # The descriptor tells only of what comes when the socket was found empty before.
        if self._poll is not None and not events_of(self._socket) & _POLLIN:
            self._spin.look(self._has_come, since)

    def _has_come(self) -> bool:
        assert self._poll is not None
        return bool(self._poll.poll(0) and events_of(self._socket) & _POLLIN)

    def _receive(self, call_id: str) -> Reply | None:
        """The next reply to this call; None: none came for a while. Those to others are late."""
        while True:
            try:
                frame = self._socket.recv(copy=False)
            except zmq.Again:
                return None
            header = frame.bytes
            if not frame.more:
                result = decode_plain(header)
                if result is not None and result.id == call_id:
                    return result
            frames: Frames = [header]
            if frame.more:
                receive_rest(self._socket, frames)
            try:
                message = self._codec.decode(frames).message
            except ProtocolError as exc:
                if exc.detail.get("id", call_id) != call_id:
                    continue
                raise
            if isinstance(message, Reply) and message.id == call_id:
                return message

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
                call.check(now)
                self._wait_at_most(call.patience_ms(now))
                reply = self._receive(call.request.id)
        finally:
            self._wait_at_most(_SLICE_MS)

    def _wait_at_most(self, patience_ms: int) -> None:
        if patience_ms != self._patience_ms and not self._socket.closed:
            self._patience_ms = patience_ms
            self._socket.rcvtimeo = patience_ms

    def _take_back(self, request: Call | Batch) -> None:
        """A call that still waits in its relay's queue must not run any more."""
        cancel = Cancel(
            id=self._session.next_id(),
            target=request.target,
            session=request.session,
            call=request.id,
        )
        # Where nothing can be sent there is nobody to tell: the relay's own deadline holds.
        with contextlib.suppress(zmq.ZMQError):
            self._socket.send(_pack(cancel), _NOBLOCK)


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
