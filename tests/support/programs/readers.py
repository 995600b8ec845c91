"""Downloaders that read for ever: readers.py RETRIEVE DATASET_ID COUNT [PATH].

Each has a connection of its own and asks for 8 pieces of 1 MiB at a time; prints ``reading`` once
each has had one. With PATH the dataset is downloaded there once, as a client does; then it prints
``downloaded``.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from labmesh.content import FileSink
from labmesh.protocol.messages import Committed, Fetch, Fetched, GetDataset
from labmesh.transfer.download_run import download
from labmesh.transport.keys import Security
from labmesh.transport.link import Link
from labmesh.transport.sockets import Sockets

PIECE = 2**20
WINDOW = 8
LIMIT_S = 60.0


async def read(link: Link, dataset_id: str, size: int, began: asyncio.Event) -> None:
    """Piece after piece, from the start again at the end."""
    offset = 0
    while True:
        fetch = Fetch(id="-", dataset_id=dataset_id, offset=offset, size=PIECE)
        await link.request(fetch, Fetched, timeout=LIMIT_S)
        began.set()
        offset = offset + PIECE if offset + 2 * PIECE <= size else 0


async def main(retrieve: str, dataset_id: str, count: int, path: str) -> None:
    """Read until killed."""
    loop = asyncio.get_running_loop()
    sockets = Sockets(Security("open"), "readers")
    links = [Link(sockets, retrieve, where="the bank") for _ in range(count)]
    for link in links:
        await link.wait_up(LIMIT_S)
    wanted = GetDataset(id="-", dataset_id=dataset_id)
    record = (await links[0].request(wanted, Committed, timeout=LIMIT_S)).record
    if path:

        async def ask(fetch: Fetch) -> tuple[Fetched, memoryview | None]:
            return await links[0].request_body(fetch, Fetched, timeout=LIMIT_S)

        sink = await loop.run_in_executor(None, FileSink, Path(path))
        await download(ask, record, sink)
        print("downloaded")
        return
    began = [asyncio.Event() for _ in range(count * WINDOW)]
    tasks = [
        asyncio.create_task(read(links[number % count], dataset_id, record.size, each))
        for number, each in enumerate(began)
    ]
    for each in began:
        await each.wait()
    print("reading")
    await asyncio.gather(*tasks)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), (sys.argv[4:] or [""])[0]))
