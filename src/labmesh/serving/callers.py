"""Who calls a relay's driver."""

from __future__ import annotations

from labmesh.protocol.leases import Leases
from labmesh.protocol.messages import Invocation, Ping, SessionRequest
from labmesh.protocol.open_call import OpenCall, Owner
from labmesh.transport.answering import Origin

__all__ = ["Callers"]

#: Names that are kept: of the sessions that have said theirs last.
_KEPT = 4096


class Callers:
    """The names of clients, as they told them when they connected.

    :param leases: who holds the lease has told a name there.
    """

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._names: dict[Owner, str] = {}
        self._last_owner = ("", "")

    def owner_of(self, request: SessionRequest | Invocation, origin: Origin) -> Owner:
        """Whose request it is: a session's of a proved user, or a connection's."""
        session = request.session
        if not session:
            return origin.peer
        # Mostly it is the one that asked last; one and the same key is found the quickest.
        owner = self._last_owner
        if owner[1] != session or owner[0] != origin.user:
            owner = self._last_owner = (origin.user, session)
        return owner

    def greet(self, ping: Ping, origin: Origin) -> None:
        """A client says who it is. Where keys prove a name, that one is in it."""
        if not ping.session or not ping.caller:
            return
        owner = (origin.user, ping.session)
        self._names.pop(owner, None)
        self._names[owner] = ping.caller
        if len(self._names) > _KEPT:
            del self._names[next(iter(self._names))]

    def name_of(self, opened: OpenCall) -> str:
        """Whose call it is, the best name that is known for it; empty: none is."""
        name = self._names.get(opened.owner)
        held = self._leases.held
        if name is None and held is not None and held.owner == opened.owner:
            name = held.holder
        return name or opened.origin.user or opened.origin.address
