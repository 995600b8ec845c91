"""gRPC for asyncio, both sides. Messages are plain bytes: there is no protobuf to pay for."""

from __future__ import annotations

import asyncio
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
from measuring import ARRAY_BYTES, VOLTAGE, announce, answer_async, stdin_closed
from numpy.typing import NDArray

_DOUBLE = struct.Struct("<d")
_REQUEST = _DOUBLE.pack(VOLTAGE)
_UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


async def _serve() -> None:
    arrays = {size: np.arange(size // 8, dtype=np.float64) for size in ARRAY_BYTES}

    async def set_voltage(request: bytes, _context: Any) -> bytes:
        (value,) = _DOUBLE.unpack(request)
        return _DOUBLE.pack(value)

    async def waveform(request: bytes, _context: Any) -> bytes:
        return arrays[int(request)].tobytes()

    server = grpc.aio.server(options=_UNLIMITED)
    methods = {
        "set_voltage": grpc.unary_unary_rpc_method_handler(set_voltage),
        "waveform": grpc.unary_unary_rpc_method_handler(waveform),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Psu", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    announce(f"127.0.0.1:{port}")
    await stdin_closed()
    await server.stop(None)


class _Grpc:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._set_voltage = channel.unary_unary("/Psu/set_voltage")
        self._waveform = channel.unary_unary("/Psu/waveform")

    async def call(self) -> float:
        value: float = _DOUBLE.unpack(await self._set_voltage(_REQUEST))[0]
        return value

    async def array(self, size: int) -> NDArray[np.float64]:
        return np.frombuffer(await self._waveform(b"%d" % size), np.float64)

    def lanes(self, width: int) -> Sequence[Callable[[], Awaitable[float]]]:
        return [self.call] * width


@asynccontextmanager
async def _opened(address: str) -> AsyncIterator[_Grpc]:
    async with grpc.aio.insecure_channel(address, options=_UNLIMITED) as channel:
        await channel.channel_ready()
        yield _Grpc(channel)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(_serve())
    else:
        answer_async(_opened, "grpcio", "numpy")
