"""A whole mesh in mode *keys* in one process, to be attacked: attacked_keys.py KEYS DATA.

KEYS has a folder of keys for each of broker, psu-1 and bank-0; their journals come to KEYS/audit.
Prints one JSON line with the
endpoints by door. SIGTERM ends it with exit code 0.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

from attacked import Counted

import labmesh
from labmesh.transport.keys import Security

_ANYWHERE = "tcp://127.0.0.1:*"


class Watched(Counted):
    """It has a state, too."""

    def poll(self) -> dict[str, float]:
        """Its state."""
        return {"voltage": self.voltage}


def security(folder: Path) -> Security:
    settings = {
        "LMH_SECURITY": "keys",
        "LMH_KEYS_DIR": str(folder),
        "LMH_AUDIT_DIR": str(folder.parent / "audit"),
    }
    return Security.resolve(environ=settings)


async def main(keys: Path, data: Path) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    broker = labmesh.DirectoryBroker(
        _ANYWHERE, _ANYWHERE, _ANYWHERE, security=security(keys / "broker")
    )
    async with broker:
        relay = labmesh.RelayAgent(
            "psu-1",
            Watched(),
            broker_rpc=str(broker.rpc),
            state_pub=str(broker.xsub),
            rpc_bind=_ANYWHERE,
            state_interval=0.02,
            read_only=("counted",),
            security=security(keys / "psu-1"),
        )
        bank = labmesh.DataBank(
            bank_id="bank-0",
            broker_rpc=str(broker.rpc),
            broker_xsub=str(broker.xsub),
            ingest_bind=_ANYWHERE,
            retrieve_bind=_ANYWHERE,
            data_dir=data,
            security=security(keys / "bank-0"),
        )
        async with relay, bank:
            await relay.ready
            await bank.ready
            endpoints = {
                "directory": str(broker.rpc),
                "xsub": str(broker.xsub),
                "xpub": str(broker.xpub),
                "relay": relay.endpoints["rpc"],
                "ingest": bank.endpoints["ingest"],
                "retrieve": bank.endpoints["retrieve"],
            }
            print(json.dumps(endpoints))
            await ended.wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
