"""The answering side on an event loop: a ROUTER socket whose requests are answered once each."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import zmq

from labmesh.errors import Busy, LabmeshError, Stopping
from labmesh.protocol.addresses import Address
from labmesh.protocol.codec import Buffer
from labmesh.protocol.messages import Message
from labmesh.transport.answering import Answer, Answering, Handle, Later, Origin
from labmesh.transport.channel import NOBLOCK, Channel, Frames, proved, receive_rest
from labmesh.transport.permits import Permits
from labmesh.transport.sockets import Sockets
from labmesh.transport.witness import address_of

__all__ = ["Answer", "Origin", "Service"]

#: A peer that is behind is tried again after the first of these; after twice as long each time.
_RETRY_S, _RETRY_MAX_S = 0.005, 0.1
#: A peer that takes nothing for so long has lost what waits for it.
_BEHIND_S = 60.0
#: Refusals and signs of life that may wait beside a full set of answers.
_SPARE = 16


class Service(Answering):
    """Answers the requests of one ROUTER socket on the running loop.

    :param role: which socket this is (``directory``, ``ingest``, ``retrieve``).
    :param requests: the messages that this socket takes.
    :param handle: gets each admitted request. It returns the reply, or a coroutine or future of
        it, or None when it will call :meth:`reply` later; what it raises becomes the reply.
    :param max_pending: answers by coroutine that one connection may have open, those included that
        wait because it does not keep up: they are sent as it reads, not dropped.
    :param permits: asked before each request is handled; None: everybody may do everything.
    """

    def __init__(
        self,
        sockets: Sockets,
        address: Address,
        *,
        role: str,
        requests: Sequence[type[Message]],
        node_id: str,
        kind: str,
        epoch: str,
        handle: Handle,
        max_pending: int = 64,
        permits: Permits | None = None,
    ) -> None:
        owner = f"{kind} {node_id}" if kind != node_id else kind
        super().__init__(
            f"{owner} ({role})",
            role=role,
            requests=requests,
            node_id=node_id,
            epoch=epoch,
            handle=handle,
            permits=permits,
        )
        self._socket, self.address = sockets.bind(zmq.ROUTER, address, role=role, owner=owner)
        self._sockets = sockets
        self._witness = sockets.witness
        self._max_pending = max_pending
        self._pending: dict[bytes, int] = {}
        self._tasks: dict[asyncio.Future[Answer], Origin] = {}
        self._behind: dict[bytes, _Behind] = {}
        self._retry: asyncio.TimerHandle | None = None
        self._retry_s = _RETRY_S
        #: who sent the message that is being taken, where the mode proves that
        self._user = ""
        self._intake = sockets.intake(self._socket)
        if sockets.security.guard is None and self._witness is None:
            self._channel = Channel(
                self._socket, self.take, name=self._name, read=self._read_unproved
            )
        else:
            self._channel = Channel(
                self._socket, self._take_proved, name=self._name, read=self._read_proved
            )

        loop = asyncio.get_running_loop()
        self._intake.on_question(partial(_ask_in, loop, self._answer_intake))

    async def close(self, linger_ms: int = 200) -> None:
        """Stop reading, refuse what was not answered, let the last replies leave; twice is fine."""
        self._intake.on_question(None)
        self._channel.close()
        if self._retry is not None:
            self._retry.cancel()
        for answer in self._tasks:
            answer.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._sockets.close(self._socket, linger_ms)

    def _answer_intake(self) -> None:
        """Was everything taken that has arrived?"""
        question = self._intake.question
        if not self._channel.drain():
            self._intake.emptied(question)

    def _read_unproved(self, socket: zmq.Socket[bytes]) -> Frames:
        """One message, of whomever."""
        frame = socket.recv(NOBLOCK, copy=False)
        if self._intake.suspects:
            self._intake.heard(frame)
        frames: Frames = [frame.bytes]
        if frame.more:
            receive_rest(socket, frames)
        return frames

    def _read_proved(self, socket: zmq.Socket[bytes]) -> Frames:
        """One message. Who it is from is looked up each time: a routing id is no proof."""
        frame = socket.recv(NOBLOCK, copy=False)
        if self._intake.suspects:
            self._intake.heard(frame)
        self._user = "" if self._sockets.security.guard is None else proved(frame)
        if self._witness is not None:
            self._address = address_of(frame)
        frames: Frames = [frame.bytes]
        if frame.more:
            receive_rest(socket, frames)
        return frames

    def _take_proved(self, frames: Frames) -> None:
        self.take(frames, self._user)

    def _transmit(self, frames: Sequence[Buffer]) -> bool:
        peer = bytes(frames[0])
        behind = self._behind.get(peer)
        if behind is None:
            if self._channel.send(frames):
                return True
            if self._channel.is_gone:
                return False
            self._behind[peer] = behind = _Behind()
        if len(behind.messages) >= self._max_pending + _SPARE:
            return False
        behind.messages.append(frames)
        if self._retry is None:
            self._arm(_RETRY_S)
        return True

    def _arm(self, pause_s: float) -> None:
        self._retry_s = pause_s
        self._retry = asyncio.get_running_loop().call_later(pause_s, self._catch_up)

    def _catch_up(self) -> None:
        """Send what waits for peers that were behind, as much as they take."""
        self._retry = None
        now = time.monotonic()
        moved = False
        for peer, behind in list(self._behind.items()):
            while behind.messages and self._channel.send(behind.messages[0]):
                behind.messages.popleft()
                behind.moved_at, moved = now, True
            if not behind.messages:
                del self._behind[peer]
            elif self._channel.is_gone or behind.moved_at + _BEHIND_S < now:
                self.dropped += len(behind.messages)
                del self._behind[peer]
        if self._behind:
            self._arm(_RETRY_S if moved else min(2 * self._retry_s, _RETRY_MAX_S))

    def _answer_later(self, origin: Origin, answer: Later) -> None:
        pending = self._pending.get(origin.peer, 0)
        behind = self._behind.get(origin.peer)
        unread = 0 if behind is None else len(behind.messages)
        if pending + unread >= self._max_pending:
            if isinstance(answer, asyncio.Future):
                answer.cancel()
            else:
                answer.close()
            raise Busy(
                f"{pending + unread} requests of this connection are open, the limit; wait for some"
            )
        self._pending[origin.peer] = pending + 1
        if not isinstance(answer, asyncio.Future):
            answer = asyncio.get_running_loop().create_task(
                answer, name=f"{self._name} answers {origin.request_id}"
            )
        self._tasks[answer] = origin
        answer.add_done_callback(self._finish)

    def _finish(self, answer: asyncio.Future[Answer]) -> None:
        origin = self._tasks.pop(answer)
        left = self._pending[origin.peer] - 1
        if left:
            self._pending[origin.peer] = left
        else:
            del self._pending[origin.peer]
        try:
            self.reply(origin, answer.result())
        except LabmeshError as exc:
            self.refuse(origin, exc)
        except asyncio.CancelledError:
            self.refuse(origin, Stopping(f"{self._name} shut down before this was answered"))
        except Exception as exc:
            self._fault(origin, None, exc)


def _ask_in(loop: asyncio.AbstractEventLoop, answer: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop is closed, and nobody reads any more
        loop.call_soon_threadsafe(answer)


class _Behind:
    """What waits for a peer that does not keep up."""

    def __init__(self) -> None:
        self.messages: deque[Sequence[Buffer]] = deque()
        self.moved_at = time.monotonic()
