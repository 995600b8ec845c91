"""A client that holds a lease and writes all the time: lease_holder.py BROKER_RPC RELAY_ID TTL_S.

Prints ``holds <fence>``, then ``wrote <number>`` for each write, and in the end, once a write was
refused, ``refused <why>`` and ``lost <why>``.
"""

from __future__ import annotations

import asyncio
import itertools
import sys

from labmesh import DirectorClientAgent
from labmesh.errors import Locked

_PAUSE_S = 0.005


async def main(rpc: str, relay_id: str, ttl_s: float) -> None:
    """Write until it is refused."""
    async with DirectorClientAgent(broker_rpc=rpc) as client:
        supply = await client.get_relay_agent(relay_id)
        async with supply.lease(ttl=ttl_s, note="a program that will be paused") as lease:
            print(f"holds {lease.fence}")
            for number in itertools.count(1):
                try:
                    await supply.write("paused", number)
                except Locked as exc:
                    print(f"refused {exc}")
                    break
                print(f"wrote {number}")
                await asyncio.sleep(_PAUSE_S)
            for _ in range(3):
                # It tries again, as a script with a loop of its own would.
                try:
                    await supply.write("paused", -1)
                except Locked:
                    continue
                print("wrote -1")
            print(f"lost {await lease.wait_ended()}")


if __name__ == "__main__":
    _, rpc_address, relay, ttl = sys.argv
    asyncio.run(main(rpc_address, relay, float(ttl)))
