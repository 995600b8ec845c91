"""Calls of threads that wait: over sockets of their own, and through the background loop if not."""

from __future__ import annotations

import logging
import math
import time
from typing import Any, TypeVar

from labmesh.blocking.background import BackgroundLoop
from labmesh.client import DirectorClientAgent
from labmesh.errors import (
    LabmeshError,
    LinkLost,
    NotFound,
    OutcomeUnknown,
    StaleEpoch,
    error_from_wire,
)
from labmesh.protocol.caller import given_up_at, limit_of
from labmesh.protocol.messages import (
    Access,
    Batch,
    BatchResult,
    Call,
    Failure,
    Reply,
    Result,
)
from labmesh.transport.call_socket import Unsent, Unsettled
from labmesh.transport.connection import Standing
from labmesh.transport.link import Link

__all__ = ["BlockingCalls"]

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Reply)

#: So says one that is not, or no longer, the relay that was meant.
_ELSEWHERE = (StaleEpoch, NotFound, LinkLost)


class BlockingCalls:
    """The calls of one client, each made in the thread that waits for it.

    What is unusual goes through the background loop: a call that cannot be sent here (then nothing
    was sent), and one that was sent and whose end nobody can tell here.
    """

    def __init__(self, background: BackgroundLoop, client: DirectorClientAgent) -> None:
        self._background = background
        self._client = client

    def call(
        self,
        relay_id: str,
        method: str,
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        timeout: float | None = None,
        access: Access = "call",
    ) -> Any:
        """Run a method, or read or write a value; see :meth:`Session.call`."""
        client = self._client
        limit_s = limit_of(timeout, client.call_limit)
        deadline = time.monotonic() + limit_s
        way = self._way(relay_id, limit_s)
        if way is not None:
            link, standing, ahead_s = way
            request = Call(
                id=client.session.next_id(),
                target=standing.node_id,
                epoch=standing.epoch,
                deadline=deadline + ahead_s,
                session=client.session.token,
                fence=client.fences.of(relay_id),
                arrive_by=_arrive_by(deadline, ahead_s),
                method=method,
                args=args,
                kwargs=kwargs,
                access=access,
            )
            result = self._ask(relay_id, request, Result, link, standing, deadline)
            if result is not None:
                return result.value
        left_s = None if timeout is None else deadline - time.monotonic()
        work = self._client.invoke(relay_id, method, args, kwargs, timeout=left_s, access=access)
        return self._background.run(work)

    def batch(
        self,
        relay_id: str,
        calls: list[Any],
        *,
        keep_going: bool = False,
        timeout: float | None = None,
    ) -> BatchResult:
        """Several calls back to back; see :meth:`Session.batch`."""
        client = self._client
        limit_s = limit_of(timeout, client.call_limit)
        deadline = time.monotonic() + limit_s
        result = None
        way = self._way(relay_id, limit_s)
        if way is not None:
            link, standing, ahead_s = way
            request = Batch(
                id=client.session.next_id(),
                target=standing.node_id,
                epoch=standing.epoch,
                deadline=deadline + ahead_s,
                session=client.session.token,
                fence=client.fences.of(relay_id),
                arrive_by=_arrive_by(deadline, ahead_s),
                calls=calls,
                keep_going=keep_going,
            )
            result = self._ask(relay_id, request, BatchResult, link, standing, deadline)
        if result is None:
            fence = client.fences.of(relay_id)
            batch = Batch(id="-", calls=calls, keep_going=keep_going, fence=fence)
            left_s = deadline - time.monotonic()
            work = self._client.request(relay_id, batch, BatchResult, timeout=left_s)
            result, _ = self._background.run(work)
        return result

    def warm(self, relay_id: str) -> None:
        """Begin to connect, for calls to come."""
        link = self._client.link_to(relay_id)
        if link is not None and self._background.serves_here():
            standing = link.standing
            if standing.up:
                self._client.direct.warm(link, standing)

    def is_under_way_here(self) -> bool:
        """Whether a call of this very thread waits, in the middle of which a signal came."""
        return self._client.direct.is_held_here()

    def _way(self, relay_id: str, limit_s: float) -> tuple[Link, Standing, float] | None:
        """Over which link's node a call can be sent from this thread, what is known of the node,
        and how far its clock is ahead; None: the call goes through the loop.
        """
        link = self._client.link_to(relay_id)
        if link is None or not 0 < limit_s < math.inf or not self._background.serves_here():
            return None
        standing = link.standing
        ahead_s = standing.ahead_s
        return None if ahead_s is None or not standing.up else (link, standing, ahead_s)

    def _ask(
        self,
        relay_id: str,
        request: Call | Batch,
        wanted: type[R],
        link: Link,
        standing: Standing,
        deadline: float,
    ) -> R | None:
        """The reply; None: it has not run and will not, and may go the other way."""
        try:
            answer = self._client.direct.ask(request, link, standing, deadline)
            if isinstance(answer, wanted):
                return answer
            self._failed(answer)
            return None
        except Unsent:
            return None
        except Unsettled as exc:
            sent_at, heard_at, state = exc.sent_at, exc.heard_at, exc.state
            log.info("call %s of %s is settled over the link: %s", request.id, relay_id, exc)
        except LabmeshError as error:
            # The way through this package says nothing to whoever made the call.
            raise error.with_traceback(None)  # noqa: B904  (it is the same error)
        work = self._client.settle_call(
            relay_id, request, deadline=deadline, sent_at=sent_at, heard_at=heard_at, state=state
        )
        settled = self._background.run(work)
        assert isinstance(settled, wanted)
        return settled

    @staticmethod
    def _failed(answer: Reply) -> None:
        """Raise what an answer that is no result says.

        It returns if the call was not run by whom it reached: a link finds out where it is to go.

        :raises Unsettled: nobody knows whether it was run.
        """
        if not isinstance(answer, Failure):
            raise Unsettled(f"answered by a {type(answer).__name__}", time.monotonic())
        error = error_from_wire(answer.name, answer.text, answer.detail)
        if isinstance(error, OutcomeUnknown):
            raise Unsettled(error.text, time.monotonic())
        if error.executed is not False or not isinstance(error, _ELSEWHERE):
            raise error


def _arrive_by(deadline: float, ahead_s: float) -> float | None:
    """:func:`given_up_at` in the node's clock."""
    instant = given_up_at(deadline, time.monotonic())
    return None if instant is None else instant + ahead_s
