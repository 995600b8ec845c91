"""What each request needs of its sender, asked before anything is done about it."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from labmesh.errors import Forbidden
from labmesh.protocol.access import Action
from labmesh.protocol.batches import read_entries
from labmesh.protocol.messages import (
    DIRECTORY_REQUESTS,
    INGEST_REQUESTS,
    RELAY_REQUESTS,
    RETRIEVE_REQUESTS,
    Access,
    Acquire,
    Annotate,
    Batch,
    BatchResult,
    BreakLease,
    Call,
    CallState,
    Cancel,
    DeleteDataset,
    Describe,
    Failure,
    Fetch,
    GetCall,
    GetDataset,
    GetHistory,
    GetStatus,
    Goodbye,
    Heartbeat,
    Hello,
    Invocation,
    ListDatasets,
    ListLast,
    ListNodes,
    ListTrash,
    Mark,
    Message,
    More,
    Ping,
    PurgeDataset,
    Release,
    Renew,
    Replay,
    Reply,
    Request,
    RestoreDataset,
    SearchDatasets,
    VerifyDataset,
    WatchAccess,
)
from labmesh.transport.keys import Security

__all__ = ["Permits"]

log = logging.getLogger(__name__)

_REQUESTS: tuple[type[Message], ...] = (
    *DIRECTORY_REQUESTS,
    *RELAY_REQUESTS,
    *INGEST_REQUESTS,
    *RETRIEVE_REQUESTS,
)
#: Whoever is admitted may send these.
_LOOKS: tuple[type[Message], ...] = (
    *(Ping, GetStatus, Describe),
    *(ListNodes, Mark, ListLast, Replay, WatchAccess),
    *(ListDatasets, SearchDatasets, GetDataset, GetHistory, ListTrash, VerifyDataset, Fetch),
)
#: A call needs what its method does. A request that is not named here ends the import: whoever adds
#: one has to say who may send it.
_NEEDS: dict[type[Message], Action] = {
    Hello: "register",
    Heartbeat: "register",
    Goodbye: "register",
    Call: "write",
    Batch: "write",
    Cancel: "read",
    More: "read",
    GetCall: "read",
    Acquire: "lease",
    Renew: "lease",
    Release: "lease",
    BreakLease: "break",
    Annotate: "annotate",
    DeleteDataset: "delete",
    RestoreDataset: "delete",
    PurgeDataset: "delete",
    **dict.fromkeys(INGEST_REQUESTS, "upload"),
    **dict.fromkeys(_LOOKS, "look"),
}
_ACTIONS: dict[type[Message], Action] = {each: _NEEDS[each] for each in _REQUESTS}
#: Where a request says who asks, in words of its own.
_SIGNED: dict[type[Message], str] = {
    Ping: "caller",
    Acquire: "holder",
    BreakLease: "by",
    Annotate: "who",
    DeleteDataset: "who",
}
_NAME_CHARS = 256
_TRACEBACK = "remote_traceback"
#: Replies in which the traceback of a driver may stand.
_TELLING = (Failure, CallState, BatchResult)


def _never(_user: str, _request: Invocation) -> bool:
    return False


class Permits:
    """Asks for one socket who may do what, and tells viewers nothing of a driver's inside.

    :param name: of the node, for the log.
    :param relay: the relay's id, where the socket is a relay's.
    :param only_reads: whether a method of its driver, by name and access, changes nothing.
    :param has_come: whether a user's call came before: it was allowed then, and "it was not run"
        would be wrong.
    """

    def __init__(
        self,
        security: Security,
        name: str,
        *,
        relay: str = "",
        only_reads: Callable[[str, Access], bool] | None = None,
        has_come: Callable[[str, Invocation], bool] | None = None,
    ) -> None:
        assert security.permissions is not None
        self._check = security.permissions.check
        self._guard = security.guard
        self._are_viewers = security.guard is None and security.password_role == "viewer"
        self._name = name
        self._relay = relay
        self._only_reads = only_reads
        self._has_come = has_come or _never

    @classmethod
    def of(
        cls,
        security: Security,
        name: str,
        *,
        relay: str = "",
        only_reads: Callable[[str, Access], bool] | None = None,
        has_come: Callable[[str, Invocation], bool] | None = None,
    ) -> Permits | None:
        """None: everybody may do everything, so that nobody has to be asked."""
        if security.permissions is None:
            return None
        return cls(security, name, relay=relay, only_reads=only_reads, has_come=has_come)

    def check(self, request: Request, user: str) -> None:
        """Whether its sender may have this done.

        :raises Forbidden: no; the text says why, and who can help.
        :raises ProtocolError: a batch that cannot be read.
        """
        if isinstance(request, Call | Batch):
            self._check_invocation(request, user)
        elif isinstance(request, Hello):
            node = request.node
            self._check(user, "register", node_id=node.node_id, kind=node.kind)
        elif isinstance(request, Heartbeat | Goodbye):
            kind = user.partition(":")[0]
            self._check(user, "register", node_id=request.node_id, kind=kind)
        else:
            action = _ACTIONS[type(request)]
            # Whoever looks at a relay does not use it.
            relay = "" if action == "look" else self._relay
            self._check(user, action, relay=relay)

    def signed(self, request: Request, user: str) -> Request:
        """A request with the name that its sender has proved, where it tells one for the record."""
        field = _SIGNED.get(type(request))
        grant = None if field is None or self._guard is None else self._guard.grant_of(user)
        if field is None or grant is None:
            return request
        told = str(getattr(request, field))
        name = grant.name if told in ("", grant.name) else f"{grant.name} ({told})"
        return replace(request, **{field: name[:_NAME_CHARS]})

    def _check_invocation(self, request: Call | Batch, user: str) -> None:
        calls = (request,) if isinstance(request, Call) else read_entries(request.calls)
        try:
            for each in calls:
                reads = self._only_reads is not None and self._only_reads(each.method, each.access)
                action: Action = "read" if reads else "write"
                self._check(user, action, relay=self._relay, method=each.method)
        except Forbidden:
            if not self._has_come(user, request):
                raise
            # What its key was allowed then it hears of, as long as the key is good.
            self._check(user, "look")

    def told(self, reply: Reply, user: str) -> Reply:
        """A reply as its asker may read it: viewers get a number that this node's log explains in
        the place of a traceback, which shows code and paths.
        """
        if type(reply) not in _TELLING or not self._is_viewer(user):
            return reply
        if isinstance(reply, Failure | CallState):
            return replace(reply, detail=self._without_inside(reply.detail, user))
        assert isinstance(reply, BatchResult)
        outcomes = [
            [*each[:2], self._without_inside(each[2], user)]
            if len(each) > 2 and isinstance(each[2], dict)
            else each
            for each in reply.outcomes
        ]
        return replace(reply, outcomes=outcomes)

    def _is_viewer(self, user: str) -> bool:
        if self._guard is None:
            return self._are_viewers
        grant = self._guard.grant_of(user)
        return grant is None or grant.role == "viewer"

    def _without_inside(self, detail: dict[str, Any], user: str) -> dict[str, Any]:
        inside = detail.get(_TRACEBACK)
        if not inside:
            return detail
        number = secrets.token_hex(4)
        told = f"{self._name}: error {number}, as {user} was told"
        # Viewers may listen to the log: what is published of this line is without the inside.
        log.warning("%s:\n%s", told, inside, extra={"published": told})
        rest = {key: each for key, each in detail.items() if key != _TRACEBACK}
        return {**rest, "error_id": number}
