"""A wire that remembers: TCP proxies in front of server sockets, which keep every byte."""

from __future__ import annotations

import asyncio
import socket
from typing import Self

from tests.support.flows import until_one_ends

from labmesh.protocol.addresses import parse_connect

_READ_BYTES = 2**16


class Wire:
    """The proxies of one network; an async context manager, on the running loop.

    Whoever connects to ``wire.front(endpoint)`` talks to ``endpoint``, and what both sides say is
    kept, each direction of each connection by itself.
    """

    def __init__(self) -> None:
        self._streams: list[bytearray] = []
        self._fronts: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def size(self) -> int:
        """Bytes that went over it."""
        return sum(map(len, self._streams))

    def count(self, needle: bytes) -> int:
        """How often these bytes went over it."""
        return sum(stream.count(needle) for stream in self._streams)

    def front(self, endpoint: str) -> str:
        """The endpoint of the proxy in front of ``endpoint``; it takes connections at once."""
        if endpoint not in self._fronts:
            listening = socket.create_server(("127.0.0.1", 0))
            listening.setblocking(False)
            self._fronts[endpoint] = f"tcp://127.0.0.1:{listening.getsockname()[1]}"
            self._spawn(self._accept(listening, parse_connect(endpoint).port))
        return self._fronts[endpoint]

    def _spawn(self, work: object) -> None:
        task = asyncio.get_running_loop().create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listening: socket.socket, port: int) -> None:
        loop = asyncio.get_running_loop()
        with listening:
            while True:
                near, _ = await loop.sock_accept(listening)
                self._spawn(self._connect(near, port))

    async def _connect(self, near: socket.socket, port: int) -> None:
        loop = asyncio.get_running_loop()
        with near, socket.socket() as far:
            for each in (near, far):
                each.setblocking(False)
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                await loop.sock_connect(far, ("127.0.0.1", port))
            except ConnectionRefusedError:
                return
            await until_one_ends(self._pump(near, far), self._pump(far, near))

    async def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        stream = bytearray()
        self._streams.append(stream)
        try:
            while received := await loop.sock_recv(source, _READ_BYTES):
                stream += received
                await loop.sock_sendall(sink, received)
        except (ConnectionResetError, BrokenPipeError):
            # A peer that closes in the middle is none of the wire's business.
            return
