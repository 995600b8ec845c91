"""A TCP cable between a client and a server, which a test can hold still, cut and mend."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self

from tests.support.flows import Flows

__all__ = ["Cable"]

_PIECE = 64 * 1024


class Cable(Flows):
    """Listens on loopback, and passes on what it gets to ``port`` and back; a context manager.

    What is held is delivered later, in order: that is what a network does which stands still, or a
    process that is paused. What is cut is lost, and both ends are told at once.
    """

    def __init__(self, port: int) -> None:
        super().__init__()
        self._target = port
        self._pumps: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._down = False
        #: bytes that went through, by direction
        self.passed = {"up": 0, "down": 0}
        self.endpoint = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._join, "127.0.0.1", 0)
        self.endpoint = f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        await self._server.wait_closed()

    def cut(self) -> None:
        """End all connections; new ones can be made."""
        for each in self._writers:
            each.transport.abort()
        for each in self._pumps:
            each.cancel()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers.add(far_writer)
        for source, sink, direction in (
            (reader, far_writer, "up"),
            (far_reader, writer, "down"),
        ):
            pump = asyncio.create_task(
                self._pump(source, sink, direction), name=f"cable {direction}"
            )
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, direction: str
    ) -> None:
        try:
            while piece := await source.read(_PIECE):
                await self.may_pass(direction)
                sink.write(piece)
                await sink.drain()
                self.passed[direction] += len(piece)
        except OSError:
            pass  # one end hung up, which the other one is told below
        finally:
            self._writers.discard(sink)
            sink.transport.abort()
            with contextlib.suppress(OSError):
                await sink.wait_closed()
