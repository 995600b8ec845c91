"""A mesh in mode *keys* in a process of its own, to be attacked, and the keys of its members."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq
from tests.support.by_hand import ByHand
from tests.support.keyed import KeyedLab, keyed_socket
from tests.support.peers import open_sockets
from tests.support.processes import Process, program

from labmesh.access.guard import guard_of
from labmesh.transport.key_pairs import KeyPair
from labmesh.transport.keys import Security
from labmesh.transport.link import Link

__all__ = ["DOORS_OF", "KeyedMesh", "keyed_mesh"]

#: A change of the list has reached every node after this time.
_HEARD_OF_S = 5.0
_KNOCK_MS = 200
#: Which sockets each node has.
DOORS_OF = {
    "broker": ("directory", "xsub", "xpub"),
    "psu-1": ("relay",),
    "bank-0": ("ingest", "retrieve"),
}
_MEMBERS: tuple[tuple[str, Any, dict[str, Any]], ...] = (
    ("psu-1", "relay", {}),
    ("bank-0", "bank", {}),
    ("psu-2", "relay", {}),
    ("bank-1", "bank", {}),
    ("vera", "viewer", {}),
    ("otto", "operator", {}),
    ("oona", "operator", {}),
    ("ada", "admin", {}),
    ("rita", "operator", {"relays": ("other-*",)}),
    ("dora", "operator", {"methods_deny": ("set_*",)}),
)


@dataclass(frozen=True)
class KeyedMesh:
    """What runs, where, and whose keys there are."""

    process: Process
    lab: KeyedLab
    endpoints: Mapping[str, str]
    securities: Mapping[str, Security]
    #: of the keys of all
    folder: Path

    @property
    def pairs(self) -> dict[str, KeyPair]:
        """Everybody's keys, by name."""
        return {"broker": self.lab.broker_pair, **self.lab.pairs}

    def server_key(self, door: str) -> bytes:
        """Of the node whose socket this is."""
        node = next(name for name, doors in DOORS_OF.items() if door in doors)
        return self.pairs[node].public

    def socket(self, who: str, door: str, kind: int = zmq.DEALER) -> Any:
        """A context manager: a socket of plain pyzmq with somebody's key."""
        return keyed_socket(kind, self.endpoints[door], self.pairs[who], self.server_key(door))

    @contextmanager
    def by_hand(self, door: str, *who: tuple[str, str]) -> Iterator[list[ByHand]]:
        """A connection for each name and session."""
        with ExitStack() as opened:
            yield [
                ByHand(opened.enter_context(self.socket(name, door)), session)
                for name, session in who
            ]

    @asynccontextmanager
    async def link(self, who: str, door: str) -> AsyncIterator[Link]:
        """A link of labmesh's with somebody's key, up."""
        security = self.securities[who].for_node("client", who, guard_of)
        guard, endpoint = security.guard, self.endpoints[door]
        assert guard is not None
        key = self.server_key(door).decode()
        if door not in DOORS_OF["broker"]:
            kind, name = ("relay", "psu-1") if door == "relay" else ("bank", "bank-0")
            guard.learn_server(kind, name, key, (endpoint,))
        with open_sockets(security, who) as sockets:
            link = Link(sockets, endpoint, where=door)
            try:
                await link.wait_up(5.0)
                yield link
            finally:
                link.close()

    def ask(self, door: str, kind: str, **fields: Any) -> dict[str, Any]:
        """One request of the admin's."""
        with self.by_hand(door, ("ada", "")) as (ada,):
            return ada.ask(kind, "1", **fields)

    def wait_admitted(self, who: str, door: str) -> None:
        """Until the node behind a door has heard of a new key; fails when it does not."""
        deadline = time.monotonic() + _HEARD_OF_S
        while True:
            # A key that was refused once is not asked about again on the same socket.
            with self.socket(who, door) as socket:
                socket.send(b'{"type":"ping","id":"1"}')
                if socket.poll(_KNOCK_MS):
                    return
            assert time.monotonic() < deadline, f"{who} is not admitted at {door}"

    def facts(self, door: str = "directory") -> dict[str, Any]:
        """What the node behind a door counts."""
        return self.ask(door, "get_status")["facts"]

    def state(self) -> object:
        """What must not change: who is listed, and what has reached the driver."""
        nodes = self.ask("directory", "list_nodes")["nodes"]
        reached = self.ask("relay", "call", method="counted")["value"]
        stored = self.ask("retrieve", "list_datasets")["records"]
        listed = [(each["node_id"], each["endpoints"], each["server_key"]) for each in nodes]
        return listed, reached, stored

    def turned_away(self, node: str) -> int:
        """Lines of a node's journal about connections that it refused."""
        name = {"psu-1": "relay-psu-1", "bank-0": "bank-bank-0"}.get(node, node)
        path = self.folder / "audit" / f"{name}.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return sum('"what":"connection"' in each for each in lines)

    def memory_mb(self) -> float:
        """What its process has in memory; 0 where nobody tells."""
        path = Path(f"/proc/{self.process.pid}/status")
        if not path.exists():
            return 0.0
        lines = path.read_text(encoding="ascii").splitlines()
        return int(next(each.split()[1] for each in lines if each.startswith("VmRSS"))) / 1000


@contextmanager
def keyed_mesh(folder: Path) -> Iterator[KeyedMesh]:
    """Start it below a folder; it ends with exit code 0."""
    lab = KeyedLab(folder / "keys")
    securities = {name: lab.admit(name, role, **limits) for name, role, limits in _MEMBERS}
    with Process(
        [program("attacked_keys.py"), folder / "keys", folder / "bank"], cwd=folder
    ) as process:
        endpoints = json.loads(process.wait_for(r"^\{.*\}$", 20)[0])
        mesh = KeyedMesh(process, lab, endpoints, securities, folder / "keys")
        yield mesh
        assert process.exit_code is None, process.tail()
        process.terminate()
        assert process.wait_end(10) == 0
