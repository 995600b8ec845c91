"""The answering side on an event loop: a ROUTER socket whose requests are answered once each."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import zmq

from labmesh.errors import Busy, LabmeshError, Stopping
from labmesh.protocol.addresses import Address
from labmesh.protocol.codec import Buffer
from labmesh.protocol.messages import Message
from labmesh.transport.answering import Answer, Answering, Handle, Origin
from labmesh.transport.channel import Channel
from labmesh.transport.sockets import Sockets

__all__ = ["Answer", "Origin", "Service"]


class Service(Answering):
    """Answers the requests of one ROUTER socket on the running loop.

    :param role: which socket this is (``directory``, ``ingest``, ``retrieve``).
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
        super().__init__(
            f"{owner} ({role})",
            role=role,
            requests=requests,
            node_id=node_id,
            epoch=epoch,
            handle=handle,
        )
        self._socket, self.address = sockets.bind(zmq.ROUTER, address, role=role, owner=owner)
        self._sockets = sockets
        self._max_pending = max_pending
        self._pending: dict[bytes, int] = {}
        self._tasks: dict[asyncio.Task[Answer], Origin] = {}
        self._channel = Channel(self._socket, self.take, name=self._name)

    async def close(self, linger_ms: int = 200) -> None:
        """Stop reading, refuse what was not answered, let the last replies leave; twice is fine."""
        self._channel.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._sockets.close(self._socket, linger_ms)

    def _transmit(self, frames: Sequence[Buffer]) -> bool:
        return self._channel.send(frames)

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
