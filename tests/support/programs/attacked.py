"""A whole mesh in one process, to be attacked: attacked.py FOLDER.

Prints one JSON line with the four request endpoints. Its instrument counts every call that reaches
it. SIGTERM ends it with exit code 0.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import sys
from collections.abc import Iterator

from labmesh.testing import LocalMesh


class Counted:
    """Counts the calls that reach it."""

    def __init__(self) -> None:
        self.calls = 0
        self.voltage = 0.0

    def set_voltage(self, value: float) -> float:
        """Counted."""
        self.calls += 1
        self.voltage = value
        return value

    def counted(self) -> list[float]:
        """How often set_voltage was called, and what it left."""
        return [self.calls, self.voltage]

    def numbers(self) -> Iterator[int]:
        """0, 1, 2 and so on, as many as somebody takes."""
        yield from itertools.count()

    def _secret(self) -> None:
        self.calls += 1000

    def __getattr__(self, name: str) -> object:
        # Whoever looks a name of the wire up on the driver is counted too.
        self.__dict__["calls"] = self.__dict__.get("calls", 0) + 1000
        raise AttributeError(name)


async def main(folder: str) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with LocalMesh({"Inst-0": Counted()}, data_dir=folder) as mesh:
        bank = mesh.banks["bank-0"]
        endpoints = {
            "directory": mesh.address,
            "relay": str(mesh.relays["Inst-0"].rpc),
            "ingest": str(bank.ingest),
            "retrieve": str(bank.retrieve),
        }
        print(json.dumps(endpoints))
        await ended.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
