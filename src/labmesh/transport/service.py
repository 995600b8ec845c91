"""The answering side: a ROUTER socket whose requests are decoded, checked, and answered once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import zmq

from labmesh.errors import Busy, InternalError, LabmeshError, ProtocolError, Stopping
from labmesh.protocol.addresses import Address
from labmesh.protocol.callee import admit
from labmesh.protocol.codec import Buffer, Codec, Limits
from labmesh.protocol.messages import Failure, Message, Ping, Pong, Reply, Request
from labmesh.protocol.seldom import Seldom
from labmesh.transport.channel import Channel, Frames
from labmesh.transport.sockets import Sockets

__all__ = ["Answer", "Origin", "Service"]

log = logging.getLogger(__name__)

#: Largest header that each socket decodes, bytes: decoding a mebibyte of nested lists takes half a
#: second, which only a relay's callers have a use for (an upload's header carries its meta).
MAX_HEADER_BYTES = {
    "directory": 64 * 2**10,
    "relay": 2**20 + 64 * 2**10,
    "ingest": 320 * 2**10,
    "retrieve": 16 * 2**10,
}

Answer = Reply | tuple[Reply, Buffer] | None
Handle = Callable[[Request, memoryview | None, "Origin"], "Answer | Coroutine[Any, Any, Answer]"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an answer goes, and in which form its asker speaks."""

    #: ZeroMQ's routing id: which connection, not who
    peer: bytes
    #: a REQ socket puts an empty frame first, and wants it back
    delimited: bool
    json: bool
    request_id: str


class Service:
    """Answers the requests of one ROUTER socket on the running loop.

    :param role: which socket this is (``directory``, ``relay``, ``ingest``, ``retrieve``).
    :param requests: the messages that this socket takes.
    :param handle: gets each admitted request. It returns the reply, or a coroutine of it, or None
        when it will call :meth:`reply` later; what it raises becomes the reply.
    :param max_pending: answers by coroutine that one connection may have open.
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
    ) -> None:
        owner = f"{kind} {node_id}" if kind != node_id else kind
        self._socket, self.address = sockets.bind(zmq.ROUTER, address, role=role, owner=owner)
        self._sockets = sockets
        self._requests = Codec(requests, limits=Limits(max_header_bytes=MAX_HEADER_BYTES[role]))
        self._answers = Codec(())
        self._node_id, self._epoch = node_id, epoch
        self._handle = handle
        self._max_pending = max_pending
        self._pending: dict[bytes, int] = {}
        self._tasks: dict[asyncio.Task[Answer], Origin] = {}
        self._name = f"{owner} ({role})"
        self._warnings = Seldom()
        #: replies that their asker did not take, or messages that could not be read
        self.dropped = 0
        self._channel = Channel(self._socket, self._take, name=self._name)

    async def close(self, linger_ms: int = 200) -> None:
        """Stop reading, refuse what was not answered, let the last replies leave; twice is fine."""
        self._channel.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._sockets.close(self._socket, linger_ms)

    def reply(self, origin: Origin, answer: Answer) -> bool:
        """Send a reply; False: its asker is gone, or does not read.

        :raises ProtocolError: a value in the reply cannot be encoded; nothing was sent.
        """
        if answer is None:
            return True
        message, body = answer if isinstance(answer, tuple) else (answer, None)
        return self.send(origin, self._answers.encode(message, body, json=origin.json))

    def send(self, origin: Origin, encoded: Sequence[Buffer]) -> bool:
        """Send a reply that was encoded elsewhere (large results are, off the loop)."""
        envelope = [origin.peer, b""] if origin.delimited else [origin.peer]
        delivered = self._channel.send([*envelope, *encoded])
        self.dropped += not delivered
        return delivered

    def refuse(self, origin: Origin, error: LabmeshError) -> None:
        """Answer with an error."""
        try:
            self.reply(origin, failure(origin.request_id, error))
        except ProtocolError:
            # A driver may have put a value into the detail that no message can carry.
            self.reply(origin, failure(origin.request_id, type(error)(str(error))))

    def _take(self, frames: Frames) -> None:
        peer = bytes(frames[0])
        delimited = len(frames) > 1 and len(frames[1]) == 0
        payload = frames[2:] if delimited else frames[1:]
        try:
            decoded = self._requests.decode(payload)
        except ProtocolError as exc:
            request_id = str(exc.detail.get("id", ""))
            origin = Origin(peer, delimited, bool(exc.detail.get("json")), request_id)
            self._warn(exc)
            self.refuse(origin, exc)
            return
        request = decoded.message
        assert isinstance(request, Request)
        origin = Origin(peer, delimited, decoded.json, request.id)
        try:
            now = time.monotonic()
            admit(request, node_id=self._node_id, epoch=self._epoch, now=now)
            if isinstance(request, Ping):
                pong = Pong(id=request.id, node_id=self._node_id, epoch=self._epoch, clock=now)
                self.reply(origin, pong)
                return
            answer = self._handle(request, decoded.body, origin)
            if isinstance(answer, Coroutine):
                self._answer_later(origin, answer)
            else:
                self.reply(origin, answer)
        except LabmeshError as exc:
            self.refuse(origin, exc)
        except Exception as exc:
            self._fault(origin, request, exc)

    def _answer_later(self, origin: Origin, answer: Coroutine[Any, Any, Answer]) -> None:
        pending = self._pending.get(origin.peer, 0)
        if pending >= self._max_pending:
            answer.close()
            raise Busy(f"{pending} requests of this connection are open, the limit; wait for some")
        self._pending[origin.peer] = pending + 1
        task = asyncio.get_running_loop().create_task(
            answer, name=f"{self._name} answers {origin.request_id}"
        )
        self._tasks[task] = origin
        task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[Answer]) -> None:
        origin = self._tasks.pop(task)
        left = self._pending[origin.peer] - 1
        if left:
            self._pending[origin.peer] = left
        else:
            del self._pending[origin.peer]
        try:
            self.reply(origin, task.result())
        except LabmeshError as exc:
            self.refuse(origin, exc)
        except asyncio.CancelledError:
            self.refuse(origin, Stopping(f"{self._name} shut down before this was answered"))
        except Exception as exc:
            self._fault(origin, None, exc)

    def _fault(self, origin: Origin, request: Request | None, exc: Exception) -> None:
        """A fault of our own: the asker is told, the log has the rest, the node lives."""
        what = type(request).__name__ if request is not None else "request"
        log.error("%s: %s %s failed", self._name, what, origin.request_id, exc_info=exc)
        self.refuse(
            origin,
            InternalError(
                f"{self._name} failed inside ({type(exc).__name__}): this is a fault of labmesh; "
                "its log has the traceback"
            ),
        )

    def _warn(self, exc: ProtocolError) -> None:
        """Bad input is worth a line, not a line each."""
        self.dropped += 1
        held_back = self._warnings.due(time.monotonic())
        if held_back is not None:
            log.warning("%s: bad input (%d more since): %s", self._name, held_back, exc)


def failure(request_id: str, error: LabmeshError) -> Failure:
    """An error as the message that carries it."""
    detail: dict[str, Any] = {
        key: value for key, value in error.detail.items() if key not in ("id", "json")
    }
    return Failure(
        id=request_id,
        code=error.code,
        name=error.name,
        text=error.text[:2000],
        retryable=error.retryable,
        detail=detail,
    )
