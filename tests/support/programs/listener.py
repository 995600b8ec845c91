"""A client that counts what it hears: listener.py BROKER_RPC BROKER_XPUB.

Prints ``ready``, and ten times a second ``heard <events> lost <told by on_gap> last <number>``; the
events' values are tables with a number ``n``.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from labmesh import DirectorClientAgent

_REPORT_S = 0.1


async def main(rpc: str, xpub: str) -> None:
    """Listen until killed."""
    heard = lost = last = 0

    def hear(_node: str, _kind: str, value: dict[str, Any]) -> None:
        nonlocal heard, last
        heard, last = heard + 1, max(last, value["n"])

    def tell(gap: Any) -> None:
        nonlocal lost
        lost += gap.lost

    async with DirectorClientAgent(broker_rpc=rpc, broker_xpub=xpub) as client:
        client.on_event(hear)
        client.on_gap(tell)
        await client.subscribed()
        print("ready")
        while True:
            await asyncio.sleep(_REPORT_S)
            print(f"heard {heard} lost {lost} last {last}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
