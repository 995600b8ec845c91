"""A client that tries everything once: visitor.py BROKER_HOST RELAY_ID BANK_ID.

Prints one line of JSON: what it found, or the error (its type and text) and the seconds it took.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from labmesh import DirectorClientAgent
from labmesh.errors import LabmeshError

_CONTENT = bytes(range(256)) * 8000


async def visit(host: str, relay_id: str, bank_id: str) -> dict[str, Any]:
    """Call, listen, upload, download."""
    async with DirectorClientAgent(host) as client:
        relays, banks = await client.list_relay_ids(), await client.list_banks()
        relay = await client.get_relay_agent(relay_id)
        bank = await client.get_databank_agent(bank_id)
        states: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        client.on_state(lambda *state: states.put_nowait(state))
        stored = await bank.upload(_CONTENT, name="visit")
        return {
            "relays": {each["relay_id"]: each["rpc_endpoint"] for each in relays},
            "banks": {each["bank_id"]: [each["ingest"], each["retrieve"]] for each in banks},
            "square": await relay.square(12),
            "states": [await states.get() for _ in range(2)],
            "same": await bank.read(stored.dataset_id) == _CONTENT,
            "refused": (await client.broker_status()).facts["connections_refused"],
        }


async def main(*arguments: str) -> None:
    """Visit, and tell."""
    began = time.monotonic()
    try:
        found = await visit(*arguments)
    except LabmeshError as exc:
        found = {"error": type(exc).__name__, "text": str(exc)}
    print(json.dumps({**found, "took_s": time.monotonic() - began}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
