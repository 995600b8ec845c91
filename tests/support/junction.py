"""Where the connections of one client part: a test holds, cuts or serves each by itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Self

from tests.support.flows import Flows, until_one_ends

from labmesh.protocol.addresses import parse_connect

__all__ = ["Junction", "Way"]

_PIECE = 64 * 1024

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Way(Flows):
    """One connection through a junction; ``up`` is to the server."""

    def __init__(self) -> None:
        super().__init__()
        self.writers: list[asyncio.StreamWriter] = []
        #: bytes that came in, by direction
        self.came = {"up": 0, "down": 0}

    def cut(self) -> None:
        """Reset both ends; what was held is lost."""
        for each in self.writers:
            each.transport.abort()

    async def end(self) -> None:
        """:meth:`cut`, and wait until that is done."""
        self.cut()
        for each in self.writers:
            with contextlib.suppress(OSError):
                await each.wait_closed()

    async def pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, direction: str
    ) -> None:
        """Pass on what comes until one end hangs up."""
        with contextlib.suppress(OSError):
            while piece := await source.read(_PIECE):
                self.came[direction] += len(piece)
                await self.may_pass(direction)
                sink.write(piece)
                await sink.drain()


class Junction:
    """Listens on loopback and passes connections on to ``endpoint``; a context manager.

    :param lanes: serves all connections but the first instead; it hangs up when it returns.
    """

    def __init__(self, endpoint: str, lanes: Serve | None = None) -> None:
        self._target = parse_connect(endpoint)
        self._lanes = lanes
        #: the connections, in the order in which they were made
        self.ways: list[Way] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._join, "127.0.0.1", 0)
        self.endpoint = f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for each in self._tasks:
            each.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for way in self.ways:
            await way.end()
        await self._server.wait_closed()

    def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._server.is_serving():
            writer.transport.abort()  # it came in while this was closed
            return
        way = Way()
        way.writers.append(writer)
        self.ways.append(way)
        is_lane = len(self.ways) > 1
        task = asyncio.get_running_loop().create_task(
            self._run(way, reader, writer, self._lanes if is_lane else None), name="junction"
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(
        self,
        way: Way,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        serve: Serve | None,
    ) -> None:
        try:
            if serve is not None:
                with contextlib.suppress(OSError, EOFError):
                    await serve(reader, writer)
                return
            far_reader, far_writer = await asyncio.open_connection(
                self._target.host, self._target.port
            )
            way.writers.append(far_writer)
            await until_one_ends(
                way.pump(reader, far_writer, "up"), way.pump(far_reader, writer, "down")
            )
        finally:
            await way.end()
