"""Nodes in a process of their own: nodes.py '[{"kind": "relay", "relay_id": "Inst-0", ...}, ...]'.

The keywords are those of the constructors. Prints ``ready <node id> <epoch>`` for each; the log, at
info, goes to stderr. SIGTERM ends all of them gracefully.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from typing import Any

from labmesh import DataBank, DirectoryBroker, RelayAgent


class Bench:
    """An instrument that computes, and one that keeps its caller waiting."""

    def __init__(self) -> None:
        self._polls = 0

    def square(self, value: int) -> int:
        """value²: a reply that tells for which argument it was made."""
        return value * value

    def block(self, seconds: float) -> float:
        """Keep the driver's thread for so long, as a slow instrument does."""
        time.sleep(seconds)
        return seconds

    def poll(self) -> dict[str, Any]:
        """A state that counts."""
        self._polls += 1
        return {"polls": self._polls}


def make(kind: str, **options: Any) -> DirectoryBroker | DataBank | RelayAgent:
    """One node."""
    if kind == "relay":
        return RelayAgent(options.pop("relay_id"), Bench(), **options)
    return {"broker": DirectoryBroker, "bank": DataBank}[kind](**options)


async def announce(node: DirectoryBroker | DataBank | RelayAgent) -> None:
    """Say when others can use it."""
    await node.ready
    print(f"ready {node.node_id} {node.epoch}")


async def main(wanted: list[dict[str, Any]]) -> None:
    """Serve until one fails or SIGTERM comes."""
    nodes = [make(**each) for each in wanted]
    await asyncio.gather(*(each.serve() for each in nodes), *(announce(each) for each in nodes))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    asyncio.run(main(json.loads(sys.argv[1])))
