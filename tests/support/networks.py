"""A network of processes: a broker that can be killed, nodes, clients that call all the time."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.processes import Process, Start, free_ports, program

from labmesh import DirectorClientAgent

BEGIN_S = 15.0


@dataclass
class Network:
    """Addresses of one broker, and what starts processes around it.

    :param start: makes a process that ends with the test.
    :param folder: where the processes run.
    """

    start: Start
    folder: Path
    ttl_s: float = 30.0
    heartbeat_s: float = 1.0
    ports: list[int] = field(default_factory=lambda: free_ports(3))

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

    def client(self) -> DirectorClientAgent:
        """A client, in this process, that is not connected yet."""
        return DirectorClientAgent(broker_rpc=self.rpc, broker_xpub=self.xpub)

    def relay(self, relay_id: str, **options: Any) -> dict[str, Any]:
        """A relay for :meth:`nodes`; by default at a free port of its own choice."""
        return {
            "kind": "relay",
            "relay_id": relay_id,
            "broker_rpc": self.rpc,
            "state_pub": self.xsub,
            "rpc_bind": "tcp://127.0.0.1:*",
            "heartbeat_seconds": self.heartbeat_s,
            **options,
        }

    def bank(self, bank_id: str, **options: Any) -> dict[str, Any]:
        """A bank for :meth:`nodes`, with a folder of its own."""
        return {
            "kind": "bank",
            "bank_id": bank_id,
            "broker_rpc": self.rpc,
            "broker_xsub": self.xsub,
            "ingest_bind": "tcp://127.0.0.1:*",
            "retrieve_bind": "tcp://127.0.0.1:*",
            "data_dir": str(self.folder / bank_id),
            "heartbeat_sec": self.heartbeat_s,
            **options,
        }

    def nodes(self, *wanted: dict[str, Any]) -> Process:
        """One process with these nodes."""
        return self.start([program("nodes.py"), json.dumps(wanted)], cwd=self.folder)

    def ready_nodes(self, *wanted: dict[str, Any]) -> Process:
        """:meth:`nodes`, once all of them are ready (registered, where they register)."""
        process = self.nodes(*wanted)
        process.wait_until(
            lambda lines: sum(each.text.startswith("ready ") for each in lines) == len(wanted),
            BEGIN_S,
            "not every node was ready",
        )
        return process

    def broker(self) -> Process:
        """The broker, once it is bound."""
        return self.ready_nodes(
            {
                "kind": "broker",
                "rpc_bind": self.rpc,
                "xsub_bind": self.xsub,
                "xpub_bind": self.xpub,
                "ttl_seconds": self.ttl_s,
            }
        )

    def callers(self, count: int, relay_ids: list[str]) -> Process:
        """Clients in one process that call these relays all the time, once they do."""
        arguments = [program("callers.py"), self.rpc, self.xpub, str(count), *relay_ids]
        process = self.start(arguments, cwd=self.folder)
        process.wait_for(r"^calls [1-9]", BEGIN_S)
        return process


def time_of(process: Process, pattern: str, timeout: float, *, after: int = 0) -> float:
    """When a line with this pattern came (monotonic seconds)."""
    found = process.wait_for(pattern, timeout, after=after)
    return next(each.time for each in process.lines[after:] if each.text == found.string)
