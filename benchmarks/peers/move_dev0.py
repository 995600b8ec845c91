"""labmesh 0.0.0.dev0: it syncs nothing, and its client does not verify what it downloads."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from measuring import announce, connect_deadline, free_port, stdin_closed
from moving import answer_moves, data_folder

from labmesh import DataBank, DirectoryBroker
from labmesh.client import BankClient
from labmesh.relay import upload_dataset


async def _broker() -> None:
    requests, xsub, xpub = (f"tcp://127.0.0.1:{free_port()}" for _ in range(3))
    broker = DirectoryBroker(rpc_bind=requests, xsub_bind=xsub, xpub_bind=xpub)
    serving = asyncio.create_task(broker.serve())
    announce(f"{requests} {xsub}")
    await stdin_closed()
    serving.cancel()


async def _serve(addresses: str) -> None:
    requests, xsub = addresses.split()
    ingest, retrieve = (f"tcp://127.0.0.1:{free_port()}" for _ in range(2))
    with data_folder() as folder:
        bank = DataBank(
            ingest_bind=ingest,
            retrieve_bind=retrieve,
            data_dir=str(folder),
            broker_rpc=requests,
            broker_xsub=xsub,
            bank_id="bank-1",
        )
        serving = asyncio.create_task(bank.serve())
        announce(f"{ingest} {retrieve}")
        await stdin_closed()
        serving.cancel()


class _Dev0:
    def __init__(self, runner: asyncio.Runner, ingest: str, bank: Any) -> None:
        self._runner = runner
        self._ingest = ingest
        self._bank = bank

    def upload(self, path: Path, name: str) -> None:
        # Its upload takes bytes.
        self._runner.run(self._stored(name, path.read_bytes()))

    def download(self, name: str, path: Path) -> None:
        self._runner.run(self._downloaded(name, path))

    def upload_small(self, contents: Sequence[tuple[str, bytes]], width: int) -> None:
        waiting = list(contents)

        async def store() -> None:
            while waiting:
                name, content = waiting.pop()
                await upload_dataset(self._ingest, content, dataset_id=name)

        async def store_all() -> None:
            await asyncio.gather(*(store() for _ in range(width)))

        self._runner.run(store_all())

    async def _stored(self, name: str, content: bytes) -> None:
        await upload_dataset(self._ingest, content, dataset_id=name)

    async def _downloaded(self, name: str, path: Path) -> None:
        deadline = connect_deadline()
        while True:
            # Its upload returns before the bank has finished.
            try:
                await self._bank.download(name, str(path))
            except RuntimeError:
                if perf_counter() > deadline:
                    raise
            else:
                return


@contextmanager
def _opened(addresses: str) -> Iterator[_Dev0]:
    ingest, retrieve = addresses.split()
    with asyncio.Runner() as runner:
        bank = BankClient(retrieve)
        runner.run(bank.connect())
        yield _Dev0(runner, ingest, bank)


if __name__ == "__main__":
    match sys.argv[1]:
        case "broker":
            asyncio.run(_broker())
        case "serve":
            asyncio.run(_serve(sys.argv[2]))
        case _:
            answer_moves(_opened, "labmesh", "pyzmq")
