"""labmesh, as its users run it: a broker, a bank with a folder, a client."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measuring import announce, stdin_closed
from moving import answer_moves, data_folder

import labmesh

_ANYWHERE = "tcp://127.0.0.1:*"
_BANK = "bank-1"


async def _broker() -> None:
    async with labmesh.DirectoryBroker(_ANYWHERE, _ANYWHERE, _ANYWHERE) as broker:
        await broker.ready
        announce(f"{broker.rpc} {broker.xsub}")
        await stdin_closed()


async def _serve(broker: str) -> None:
    requests, events = broker.split()
    with data_folder() as folder:
        bank = labmesh.DataBank(
            ingest_bind=_ANYWHERE,
            retrieve_bind=_ANYWHERE,
            data_dir=folder,
            broker_rpc=requests,
            broker_xsub=events,
            bank_id=_BANK,
        )
        async with bank:
            await bank.ready
            announce(requests)
            await stdin_closed()


class _Labmesh:
    def __init__(self, runner: asyncio.Runner, bank: Any) -> None:
        self._runner = runner
        self._bank = bank

    def upload(self, path: Path, name: str) -> None:
        self._runner.run(self._bank.upload(path, dataset_id=name))

    def download(self, name: str, path: Path) -> None:
        self._runner.run(self._bank.download(name, path))

    def upload_small(self, contents: Sequence[tuple[str, bytes]], width: int) -> None:
        self._runner.run(self._upload_small(list(contents), width))

    async def _upload_small(self, contents: list[tuple[str, bytes]], width: int) -> None:
        async def store() -> None:
            while contents:
                name, content = contents.pop()
                await self._bank.upload(content, dataset_id=name)

        await asyncio.gather(*(store() for _ in range(width)))


@contextmanager
def _opened(broker: str) -> Iterator[_Labmesh]:
    with asyncio.Runner() as runner:
        client = labmesh.DirectorClientAgent(broker_rpc=broker)
        runner.run(client.connect())
        try:
            yield _Labmesh(runner, runner.run(client.get_databank_agent(_BANK)))
        finally:
            runner.run(client.close())


if __name__ == "__main__":
    match sys.argv[1]:
        case "broker":
            asyncio.run(_broker())
        case "serve":
            asyncio.run(_serve(sys.argv[2]))
        case _:
            answer_moves(_opened, "pyzmq", "msgspec")
