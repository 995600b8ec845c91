"""Nodes around a broker that need not be there yet."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support import records
from tests.support.peers import open_sockets
from tests.support.processes import free_ports

from labmesh import DataBank, DirectorClientAgent, DirectoryBroker, RelayAgent
from labmesh.protocol.messages import Hello, Welcome
from labmesh.testing import ScriptedInstrument
from labmesh.transport.link import Link

ANYWHERE = "tcp://127.0.0.1:*"
_ANSWER_S = 10.0


async def list_relay(broker_rpc: str, endpoint: str, relay_id: str = "Inst-0") -> None:
    """Have a broker list a relay at an address that is not its own, such as a cable's end."""
    with open_sockets() as sockets:
        link = Link(sockets, broker_rpc, where="the broker")
        try:
            node = records.relay(relay_id, endpoint=endpoint)
            await link.request(Hello(id="-", node=node), Welcome, timeout=_ANSWER_S)
        finally:
            link.close()


@dataclass
class Places:
    """The addresses of one broker, and what makes nodes that look for it there.

    :param folder: where banks have theirs.
    """

    folder: Path
    ports: list[int] = field(default_factory=lambda: free_ports(3))
    heartbeat_s: float = 1.0

    @property
    def rpc(self) -> str:
        """The broker's request address."""
        return f"tcp://127.0.0.1:{self.ports[0]}"

    @property
    def xsub(self) -> str:
        """The broker's address for publishers."""
        return f"tcp://127.0.0.1:{self.ports[1]}"

    @property
    def xpub(self) -> str:
        """The broker's address for subscribers."""
        return f"tcp://127.0.0.1:{self.ports[2]}"

    def broker(self, **options: Any) -> DirectoryBroker:
        """A broker at these addresses."""
        return DirectoryBroker(self.rpc, self.xsub, self.xpub, **options)

    def relay(
        self, relay_id: str = "Inst-0", driver: object | None = None, **options: Any
    ) -> RelayAgent:
        """A relay at a free port, with a driver whose state is a constant."""
        return RelayAgent(
            relay_id,
            ScriptedInstrument(poll={"voltage": 2.5}) if driver is None else driver,
            **{
                "broker_rpc": self.rpc,
                "state_pub": self.xsub,
                "rpc_bind": ANYWHERE,
                "heartbeat_seconds": self.heartbeat_s,
                "state_interval": 0.05,
                **options,
            },
        )

    def bank(self, bank_id: str = "bank-0", **options: Any) -> DataBank:
        """A bank at free ports, with a folder of its own."""
        return DataBank(
            **{
                "bank_id": bank_id,
                "broker_rpc": self.rpc,
                "broker_xsub": self.xsub,
                "ingest_bind": ANYWHERE,
                "retrieve_bind": ANYWHERE,
                "data_dir": self.folder / bank_id,
                "heartbeat_sec": self.heartbeat_s,
                **options,
            }
        )

    def client(self, **options: Any) -> DirectorClientAgent:
        """A client, not connected yet."""
        return DirectorClientAgent(broker_rpc=self.rpc, broker_xpub=self.xpub, **options)
