"""A relay whose driver publishes numbered events without pause: event_load.py <options as JSON>.

The options are those of RelayAgent. Prints ``ready <node id>``. ``begin(rate)`` starts the events,
``end()`` ends them and tells how many there were; ``square`` is there to be called meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from typing import Any

import labmesh


class Load:
    """Publishes ``step`` events with numbers from 1 on, in a thread of its own."""

    def __init__(self) -> None:
        self._count = 0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, rate: float) -> None:
        """So many events a second, from now on."""
        publish = labmesh.publisher()
        self._over.clear()
        self._thread = threading.Thread(target=self._run, args=(publish, rate))
        self._thread.start()

    def end(self) -> int:
        """How many there were."""
        self._over.set()
        assert self._thread is not None
        self._thread.join()
        return self._count

    def square(self, value: int) -> int:
        """value²."""
        return value * value

    def poll(self) -> dict[str, Any]:
        """A state that counts."""
        return {"count": self._count}

    def _run(self, publish: Any, rate: float) -> None:
        began, sent = time.monotonic(), 0
        while not self._over.is_set():
            due = int((time.monotonic() - began) * rate)
            while sent < due:
                sent += 1
                self._count += 1
                publish("step", self._count)
            self._over.wait(1 / rate)


async def main(options: dict[str, Any]) -> None:
    """Serve until SIGTERM."""
    relay = labmesh.RelayAgent(options.pop("relay_id"), Load(), **options)

    async def announce() -> None:
        await relay.ready
        print(f"ready {relay.node_id}")

    await asyncio.gather(relay.serve(), announce())


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
