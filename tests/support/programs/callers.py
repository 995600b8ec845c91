"""Clients that call all the time: callers.py BROKER_RPC BROKER_XPUB CLIENTS RELAY_ID...

Each client calls one relay after the other and checks the answer. Prints ``calls <n> worst <s>``
five times a second (the slowest call since the last line), and ``failed <what>`` for each call that
raised or was answered wrongly.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time

from labmesh import DirectorClientAgent
from labmesh.errors import LabmeshError

_PAUSE_S = 0.01
_REPORT_S = 0.2


class Tally:
    """What all clients have done."""

    def __init__(self) -> None:
        self.calls = 0
        self.worst_s = 0.0

    def count(self, lasted_s: float) -> None:
        """One call that was answered rightly."""
        self.calls += 1
        self.worst_s = max(self.worst_s, lasted_s)


async def call_all_the_time(
    client: DirectorClientAgent, relay_ids: list[str], tally: Tally
) -> None:
    """Call ``square`` of each relay in turn, for ever."""
    relays = [await client.get_relay_agent(each) for each in relay_ids]
    for number, relay in zip(itertools.count(), itertools.cycle(relays), strict=False):
        began = time.monotonic()
        try:
            answer = await relay.call("square", number)
        except LabmeshError as exc:
            print(f"failed {relay.relay_id}: {exc!r}")
        else:
            if answer == number * number:
                tally.count(time.monotonic() - began)
            else:
                print(f"failed {relay.relay_id}: square of {number} is {answer!r}?")
        await asyncio.sleep(_PAUSE_S)


async def report(tally: Tally) -> None:
    """Say how it goes."""
    while True:
        await asyncio.sleep(_REPORT_S)
        print(f"calls {tally.calls} worst {tally.worst_s:.4f}")
        tally.worst_s = 0.0


async def main(rpc: str, xpub: str, count: int, relay_ids: list[str]) -> None:
    """Connect the clients and let them call."""
    tally = Tally()
    clients = [DirectorClientAgent(broker_rpc=rpc, broker_xpub=xpub) for _ in range(count)]
    for each in clients:
        await each.connect()
    callers = [call_all_the_time(each, relay_ids, tally) for each in clients]
    await asyncio.gather(report(tally), *callers)


if __name__ == "__main__":
    _, rpc_address, xpub_address, clients_wanted, *relays = sys.argv
    asyncio.run(main(rpc_address, xpub_address, int(clients_wanted), relays))
