"""The object store of NATS: a server of its own (``nats-server`` on the path), files as objects.

The server takes a SHA-256 of each object; it syncs its files every two minutes, as it comes, so an
object that it acknowledged may be lost with the power.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nats
from measuring import announce, connect_deadline, free_port, stdin_closed
from moving import answer_moves, data_folder, sync_folder

_BUCKET = "datasets"


async def _serve() -> None:
    program = shutil.which("nats-server")
    if program is None:
        raise SystemExit("nats-server is not installed")
    port = free_port()
    with data_folder() as folder:
        options = ["-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(folder)]
        server = await asyncio.create_subprocess_exec(
            program, *options, stderr=asyncio.subprocess.DEVNULL
        )
        try:
            announce(f"nats://127.0.0.1:{port}")
            await stdin_closed()
        finally:
            server.terminate()
            await server.wait()


class _Nats:
    def __init__(self, runner: asyncio.Runner, store: Any) -> None:
        self._runner = runner
        self._store = store

    def upload(self, path: Path, name: str) -> None:
        async def put() -> None:
            with path.open("rb") as file:
                await self._store.put(name, file)

        self._runner.run(put())

    def download(self, name: str, path: Path) -> None:
        async def get() -> None:
            with path.open("wb") as file:
                await self._store.get(name, writeinto=file)
                file.flush()
                os.fsync(file.fileno())
            sync_folder(path.parent)

        self._runner.run(get())

    def upload_small(self, contents: Sequence[tuple[str, bytes]], width: int) -> None:
        waiting = list(contents)

        async def store() -> None:
            while waiting:
                name, content = waiting.pop()
                await self._store.put(name, content)

        async def store_all() -> None:
            await asyncio.gather(*(store() for _ in range(width)))

        self._runner.run(store_all())


@contextmanager
def _opened(address: str) -> Iterator[_Nats]:
    with asyncio.Runner() as runner:
        client = runner.run(_connected(address))
        stream = client.jetstream(timeout=60)
        try:
            yield _Nats(runner, runner.run(stream.create_object_store(_BUCKET)))
        finally:
            runner.run(client.close())


async def _connected(address: str) -> Any:
    deadline = connect_deadline()
    loop = asyncio.get_running_loop()
    attempts = int(max(1.0, deadline - loop.time()) / 0.1)
    return await nats.connect(address, max_reconnect_attempts=attempts, reconnect_time_wait=0.1)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(_serve())
    else:
        answer_moves(_opened, "nats-py")
