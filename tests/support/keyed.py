"""A laboratory in mode *keys*: the broker's computer, and one for each other key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zmq
from msgspec.structs import replace

from labmesh.access.keyring import KeyFolder
from labmesh.protocol.access import Grant, Role
from labmesh.transport.key_pairs import KeyPair
from labmesh.transport.keys import Security

__all__ = ["KeyedLab", "key_of", "keyed_socket", "security_in"]


class KeyedLab:
    """Folders of keys below ``path``; the broker's has the allow-list."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.at_broker = KeyFolder(path / "broker")
        self.broker_pair = self.at_broker.create("broker", "broker")
        self.at_broker.pin_broker(self.broker_pair.public)
        self.folders: dict[str, KeyFolder] = {}
        self.pairs: dict[str, KeyPair] = {}
        self.at_broker.authorized.mkdir(mode=0o700, exist_ok=True)

    @property
    def broker(self) -> Security:
        """What the broker has."""
        return security_in(self.at_broker)

    def admit(self, name: str, role: Role, **limits: Any) -> Security:
        """A new key on a computer of its own, on the broker's list; what its node has."""
        security = self.stranger(name, role)
        self.at_broker.authorize(self.grant(name, role, **limits))
        return security

    def stranger(self, name: str, role: Role) -> Security:
        """A key that trusts the broker, and that the broker does not know."""
        folder = self.folders[name] = KeyFolder(self._path / name)
        self.pairs[name] = folder.create(name, role)
        folder.pin_broker(self.broker_pair.public)
        return security_in(folder)

    def grant(self, name: str, role: Role, **limits: Any) -> Grant:
        """The line of the allow-list for a key that was made here."""
        grant = Grant(name=name, role=role, key=self.pairs[name].public.decode())
        return replace(grant, **limits)

    def change(self, name: str, role: Role, **limits: Any) -> None:
        """The same key may do something else from now on."""
        self.at_broker.authorize(self.grant(name, role, **limits))

    def revoke(self, name: str) -> None:
        """Its key is refused from now on."""
        self.at_broker.revoke(name)


def security_in(folder: KeyFolder) -> Security:
    """What a node has whose keys are in this folder."""
    return Security.resolve(environ={"LMH_SECURITY": "keys", "LMH_KEYS_DIR": str(folder.path)})


def key_of(name: str) -> str:
    """A public key that is none, another one for each name."""
    return (name.replace("_", "-") + 40 * "0")[:40]


@contextmanager
def keyed_socket(
    kind: int, endpoint: str, own: KeyPair, server_key: bytes
) -> Iterator[zmq.Socket[bytes]]:
    """A socket of plain pyzmq with a key of its own; it drops nothing that it sends."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(kind)
    socket.linger = 0
    socket.sndhwm = socket.rcvhwm = 0
    socket.curve_serverkey = server_key
    socket.curve_publickey, socket.curve_secretkey = own.public, own.secret
    socket.connect(endpoint)
    try:
        yield socket
    finally:
        socket.close(0)
        context.term()
