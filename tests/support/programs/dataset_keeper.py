"""A client that goes on from a cursor: dataset_keeper.py BROKER_RPC BROKER_XPUB FOLDER.

In FOLDER it has ``cursor.json``, and writes a line to ``calls`` when its callback begins
(``begin``, the dataset's id, whether it is a repeat) and when it has its effect (``done``, the id;
``twice`` when it had it before). The effect is a file; a repeat looks whether it is there already.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

from labmesh import DirectorClientAgent

_WORK_S = 0.002


async def main(broker_rpc: str, broker_xpub: str, folder: Path) -> None:
    """Listen until it is killed."""
    calls = os.open(folder / "calls", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def keep(record: dict[str, Any]) -> None:
        name, repeated = record["dataset_id"], record["repeated"]
        os.write(calls, f"begin {name} {repeated}\n".encode())
        time.sleep(_WORK_S)
        effect = folder / "kept" / name
        if not (repeated and effect.exists()):
            os.write(calls, f"{'twice' if effect.exists() else 'done'} {name}\n".encode())
            effect.touch()
        time.sleep(_WORK_S)

    async with DirectorClientAgent(broker_rpc=broker_rpc, broker_xpub=broker_xpub) as client:
        client.on_dataset(keep, cursor=folder / "cursor.json", since=0)
        await client.serve()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
