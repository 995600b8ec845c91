"""A relay that acquires without a pause: spooling_relay.py RPC XSUB SPOOL NAME [idle].

Prints ``kept <dataset id>`` when an upload has returned. The id tells how the content was made; see
:func:`content_of`. With ``idle`` it only sends what its spool holds, and ends when that is empty.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
from collections.abc import Iterator

import labmesh
from labmesh import DirectorClientAgent, RelayAgent

_LARGEST = 2_000_000


def content_of(dataset_id: str) -> bytes:
    """The bytes of a dataset of this program."""
    size = int(dataset_id.rpartition("-")[2])
    return random.Random(dataset_id).randbytes(size)


class Camera:
    """It acquires in the relay's own thread for drivers."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._numbers = itertools.count()

    def acquire(self) -> str:
        """One dataset, whole or as it comes."""
        number = next(self._numbers)
        size = _LARGEST if number % 5 == 1 else int(_LARGEST ** random.random())
        dataset_id = f"{self._name}-{number}-{size}"
        content = content_of(dataset_id)
        pieces = self._pieces(content) if number % 2 else content
        return labmesh.upload(pieces, dataset_id=dataset_id, meta={"number": number})

    def _pieces(self, content: bytes) -> Iterator[bytes]:
        for offset in range(0, len(content), 50_000):
            yield content[offset : offset + 50_000]

    def run(self, count: int) -> None:
        """Go on, and say what is kept."""
        for _ in range(count):
            print(f"kept {self.acquire()}", flush=True)


async def main(rpc: str, xsub: str, spool: str, name: str, idle: bool) -> None:
    """Run until killed, or until all was sent."""
    relay = RelayAgent(
        "Inst-0",
        Camera(name),
        broker_rpc=rpc,
        rpc_bind="tcp://127.0.0.1:*",
        state_pub=xsub,
        heartbeat_seconds=0.5,
        upload_timeout=2.0,
        spool_dir=spool,
    )
    async with relay:
        await relay.ready
        print(f"ready {name}", flush=True)
        if idle:
            await relay.drain()
        else:
            async with DirectorClientAgent(broker_rpc=rpc) as client:
                proxy = await client.get_relay_agent("Inst-0")
                await proxy.run(10**9)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:5], idle="idle" in sys.argv[5:]))
