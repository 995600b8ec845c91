"""A client that calls and listens until it is refused, and then listens on: steady.py RELAY_ID.

Prints a line for each answer (``call``) and each state (``state``), for the first refused call
(``refused`` and the error's type), and ``over`` some seconds later.
"""

from __future__ import annotations

import asyncio
import sys

from labmesh import DirectorClientAgent
from labmesh.discovery import broker_candidate
from labmesh.errors import LabmeshError

#: Between two calls; and how long it listens on.
_PAUSE_S, _AFTER_S = 0.05, 2.2
_PATIENCE_S = 0.5


async def main(relay_id: str) -> None:
    """Call, listen, tell."""
    async with DirectorClientAgent(broker_rpc=broker_candidate(None, {}).rpc) as client:
        client.on_state(lambda *_: print("state", flush=True), relay_id=relay_id)
        relay = await client.get_relay_agent(relay_id)
        try:
            while True:
                await relay.call("set_voltage", [1.0], timeout=_PATIENCE_S)
                print("call", flush=True)
                await asyncio.sleep(_PAUSE_S)
        except LabmeshError as exc:
            print(f"refused {type(exc).__name__}: {exc}", flush=True)
        await asyncio.sleep(_AFTER_S)
    print("over", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
