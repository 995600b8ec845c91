"""The asking side: requests over a connection that heals by itself, each of which ends once."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any, TypeVar

from labmesh.errors import NotSent
from labmesh.protocol.caller import CallProgress
from labmesh.protocol.codec import Buffer, Decoded
from labmesh.protocol.messages import Access, Call, Invocation, More, Reply, Request, Result
from labmesh.transport.call_session import CallSession
from labmesh.transport.inflow import ItemStream
from labmesh.transport.pending import Answered, Pending, method_of
from labmesh.transport.plain import encode_plain
from labmesh.transport.requests import Requests

__all__ = ["CallSession", "Link"]

R = TypeVar("R", bound=Reply)


class Link(Requests):
    """Requests to one node, one connection at a time, on the running loop; see :class:`Connection`.

    A call that was sent when the connection breaks is sent again, under its id, as soon as the link
    to the same incarnation of the node is up again; the node runs it once. A question ends as
    :class:`LinkLost`.

    :param session: of the client whose calls these are; None: the link has one of its own.
    """

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
        pending = self.begin(request, timeout=timeout, body=body, patient=patient)
        decoded = await self._outcome(pending)
        return self._open_reply(pending, decoded, reply), decoded.body

    def begin(
        self,
        request: Request,
        *,
        timeout: float,
        body: Buffer | None = None,
        patient: bool = True,
    ) -> Pending:
        """Send a request now, and await its reply later: :meth:`reply_to`, or :meth:`forget`.

        The parameters are those of :meth:`request_body`.
        """
        pending = Pending(
            self._session.next_id(),
            self._deadline(timeout),
            method_of(request),
            isinstance(request, Invocation),
            request=request,
            future=self._loop.create_future(),
            patient=patient,
            body=body,
        )
        self._begin(pending, time.monotonic())
        return pending

    async def reply_to(self, pending: Pending, reply: type[R]) -> R:
        """What the other side answers, or what happened to the link; see :meth:`request`."""
        return self._open_reply(pending, await self._outcome(pending), reply)

    def forget(self, pending: Pending) -> None:
        """Nobody wants to know any more how this request ends."""
        if pending.future.cancel():
            self.take_back(pending)
        elif not pending.future.cancelled():
            pending.future.exception()  # looked at: else asyncio warns that nobody did

    def begin_call(
        self,
        method: str,
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        now: float,
        deadline: float,
        access: Access = "call",
        fence: int = 0,
    ) -> Pending:
        """Send a call of a driver's method; await its ``future``, then :meth:`value_of` it.

        The quick way: everything is made once, in its final form. Whoever is cancelled while
        waiting calls :meth:`take_back`.

        :param now: our monotonic clock, in which ``deadline`` is, too.
        :raises NotSent: the link is not up.
        """
        if not self.up:
            raise self._hopeless() or self._not_sent()
        if not deadline > now:
            self._deadline(deadline - now)
        session = self._session
        request_id = session.next_id()
        ends_at, arrive_by = self._clock.times_of(deadline, now)
        call = Call(
            id=request_id,
            target=self.node_id,
            epoch=self.epoch,
            deadline=ends_at,
            session=session.token,
            method=method,
            args=args,
            kwargs=kwargs,
            access=access,
            fence=fence,
            arrive_by=arrive_by,
        )
        pending = Pending(
            request_id,
            deadline,
            method,
            True,
            request=call,
            future=self._loop.create_future(),
            frames=encode_plain(call) or self._encoded(call, None),
        )
        self._start(pending, now)
        return pending

    def value_of(self, pending: Pending, answered: Answered) -> Any:
        """What a call has returned.

        :raises OutcomeUnknown: the reply is of another type.
        """
        if isinstance(answered, Result):
            return answered.value
        return self._open_reply(pending, answered, Result).value

    async def call(
        self,
        method: str,
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        timeout: float,
        access: Access = "call",
        fence: int = 0,
    ) -> Any:
        """Call a driver's method; what it returned. See :meth:`request`.

        :raises NotSent: the link is not up.
        """
        now = time.monotonic()
        pending = self.begin_call(
            method, args, kwargs, now=now, deadline=now + timeout, access=access, fence=fence
        )
        return self.value_of(pending, await self._outcome(pending))

    def stream(
        self,
        method: str,
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        timeout: float,
        credit: int,
        fence: int = 0,
    ) -> ItemStream:
        """Begin to call a driver's method that yields. A break of the link ends it.

        :raises NotSent: the link is not up.
        """
        call = Call(id="-", method=method, args=args, kwargs=kwargs, credit=credit, fence=fence)
        pending = Pending(
            self._session.next_id(),
            self._deadline(timeout),
            method,
            request=call,
            future=self._loop.create_future(),
        )
        pending.stream = ItemStream(
            credit,
            pending.future,
            more=lambda count: self._tell(More(id="-", call=pending.id, credit=count)),
            stop=lambda: self.take_back(pending),
        )
        self._begin(pending, time.monotonic())
        return pending.stream

    async def settle(
        self,
        request: Invocation,
        reply: type[R],
        *,
        deadline: float,
        sent_at: float | None = None,
        heard_at: float | None = None,
        state: CallProgress = "",
    ) -> R:
        """Find out how a call ends that was sent over another socket, which broke.

        It is sent again under its id; the node runs it once, and answers again what it has
        answered already. It ends as any call of this link does: with its reply, the error that the
        other side answered, or :class:`OutcomeUnknown`: 2 s after now while the link is not up, 4 s
        after its last sign of life, at its deadline, or at once if the node was restarted.

        :param request: exactly as it was sent: with its id and session (those of this link's
            :class:`CallSession`), target, epoch, and deadline in the node's clock.
        :param deadline: the same deadline, in our monotonic clock; ``math.inf``: none.
        :param sent_at: when it was sent, in our monotonic clock.
        :param heard_at: its last sign of life over the other socket, and
        :param state: what that said.
        """
        pending = Pending(
            request.id,
            deadline,
            method_of(request),
            True,
            request=request,
            future=self._loop.create_future(),
            frames=self._encoded(request, None),
        )
        now = time.monotonic()
        self._caller.taken_over(pending, now, request.epoch)
        pending.sent_at = now if sent_at is None else sent_at
        pending.state = state
        if self._closed:
            self._end(self._caller.close())
        elif self.up:
            self._resume(now)
            if heard_at is not None:
                self._caller.silent_since(pending, heard_at)
        self._arm()
        return self._open_reply(pending, await self._outcome(pending), reply)

    async def _outcome(self, pending: Pending) -> Decoded:
        try:
            answered = await pending.future
        except asyncio.CancelledError:
            self.take_back(pending)
            raise
        return Decoded(answered, None, False) if isinstance(answered, Result) else answered

    def _deadline(self, timeout: float) -> float:
        if math.isnan(timeout):
            raise ValueError("a timeout is a number of seconds, not NaN")
        if timeout <= 0:
            raise NotSent(f"the deadline passed before {self.where} could be asked")
        return time.monotonic() + timeout
