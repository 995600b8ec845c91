"""A driver in this process that writes down what it runs, and its relay."""

from __future__ import annotations

import os

from tests.support.history import Journal, note
from tests.support.places import Places
from tests.support.processes import free_ports

from labmesh import RelayAgent, expose

__all__ = ["Recorder", "relay_of"]


class Recorder:
    """Its methods return their tags."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal.open()

    def move(self, tag: str) -> str:
        """Once at most."""
        note(self._journal, tag)
        return tag

    @expose(idempotent=True)
    def put(self, tag: str) -> str:
        """As often as it takes."""
        note(self._journal, tag)
        return tag

    def close(self) -> None:
        """Give the journal back."""
        os.close(self._journal)


def relay_of(places: Places, driver: object, port: int | str = "*") -> RelayAgent:
    """A relay without a broker."""
    nobody = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    bind = f"tcp://127.0.0.1:{port}"
    return places.relay("Inst-0", driver, rpc_bind=bind, broker_rpc=nobody, state_interval=60.0)
