"""A client whose calls go into a link that stands still: stale_calls.py RPC XPUB RELAY TAG CALLS.

Prints ``linked`` when it has called once. At the first SIGUSR1 it makes that many calls at a time,
each with 1 s to its deadline, and prints their history as one line of JSON. At the next one it
calls until twice as many calls have come through, and prints ``healed``.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

from labmesh import DirectorClientAgent, RelayClient

sys.path.insert(0, str(Path(__file__).parents[3]))
from tests.support.history import History

TIMEOUT_S = 1.0


async def call_until_through(relay: RelayClient, tag: str, calls: int) -> None:
    """Relays take turns between connections: behind these calls none of an older one waits."""
    number = came_through = 0
    while came_through < 2 * calls:
        history = History()
        number += 1
        await history.watch(tag, relay.call("move", f"{tag}-after-{number}", timeout=5.0), 5.0)
        came_through += history.operations[0].told == "result"


async def main(rpc: str, xpub: str, relay_id: str, tag: str, calls: int) -> None:
    """Twice on demand."""
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, told.set)
    async with DirectorClientAgent(broker_rpc=rpc, broker_xpub=xpub) as client:
        relay = await client.get_relay_agent(relay_id, wait=10.0)
        await relay.call("move", f"{tag}-first")
        print("linked")
        await told.wait()
        told.clear()
        history = History()
        tags = [f"{tag}-{number}" for number in range(calls)]
        await asyncio.gather(
            *(
                history.watch(each, relay.call("move", each, timeout=TIMEOUT_S), TIMEOUT_S)
                for each in tags
            )
        )
        print(f"history {json.dumps(history.as_dicts())}")
        await told.wait()
        await call_until_through(relay, tag, calls)
        print("healed")


if __name__ == "__main__":
    _, rpc_address, xpub_address, relay, name, count = sys.argv
    asyncio.run(main(rpc_address, xpub_address, relay, name, int(count)))
