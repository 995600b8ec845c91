"""Who did what at one node: what sockets, calls, leases and banks tell its audit journal."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Generator
from pathlib import Path
from typing import Any

from msgspec import Raw, Struct

from labmesh.access.audit_files import audit_file
from labmesh.access.audit_lines import (
    ACTS,
    ATTEMPTS,
    counted_entry,
    failure_fields,
    grant_facts,
    method_of,
    parameters_of,
    shown_fields,
)
from labmesh.errors import AuthenticationError, Forbidden, LabmeshError
from labmesh.instruments.exposure import MethodTable
from labmesh.instruments.jobs import Outcome
from labmesh.protocol.access import Grant
from labmesh.protocol.audit import Entry, Tally, clean_text, short_parameters
from labmesh.protocol.batches import read_entries
from labmesh.protocol.leases import Ended
from labmesh.protocol.messages import (
    Batch,
    Call,
    Committed,
    Lease,
    Request,
    UploadCommit,
    UploadWhole,
)
from labmesh.protocol.open_call import OpenCall
from labmesh.storage.journal import Journal
from labmesh.transport.answering import Answer, Later, Origin
from labmesh.transport.keys import Guard, Security

__all__ = ["Audit", "audit_of"]

#: A refusal of one kind is written so often a minute; the others are counted.
_REFUSALS = 20
#: A call that runs for longer has a line before its end as well.
_LONG_CALL_S = 2.0
_METHODS = 16
_WHO = {"password": "member", "open": "anonymous"}


class _Draft(Struct, gc=False):
    """A call that has begun to be one, for the line at its end."""

    time: float
    method: str
    methods: tuple[str, ...]
    access: str
    parameters: Raw
    told: bool = False


class Audit:
    """Writes the journal of one node.

    Whoever has none has None in its place, and asks nobody.

    :param path: the file where lines go.
    :param node: kind and id, for each line.
    :param anybody: who somebody is whom the mode does not know.
    """

    def __init__(self, path: Path, node: str, *, anybody: str = "anonymous") -> None:
        self._node = node
        self._id = node.rpartition(" ")[2]
        self._anybody = anybody
        self._table: MethodTable | None = None
        self._open: dict[OpenCall, _Draft] = {}
        self._lock = threading.Lock()
        self._refusals, self._doors, self._events = Tally(_REFUSALS), Tally(), Tally()
        self._grants: dict[str, Grant] = {}
        self._journal = Journal(path, more=self._counted)

    @property
    def lost(self) -> int:
        """Lines that found no room, or could not be written."""
        return self._journal.lost

    def begin(self, security: Security, version: str) -> None:
        """The node begins to work."""
        guard = security.guard
        if guard is not None and self._node == "broker":
            self._grants = _grants_of(guard)
            guard.on_change(lambda: self._list_changed(guard))
        parameters = short_parameters(kwargs={"version": version, "security": security.mode})
        self._put(what="node", method="start", user=self._id, parameters=parameters)

    def close(self) -> None:
        """The node has ended: write what is left."""
        with self._lock:
            late = self._tallied(at_end=True)
        for each in late:
            self._journal.put(each)
        self._put(what="node", method="stop", user=self._id)
        self._journal.close()

    def _put(self, **fields: Any) -> None:
        fields.setdefault("time", time.time())
        self._journal.put(Entry(node=self._node, **fields))

    # ── requests, as of Witness ─────────────────────────────────────────────────────────────────

    def watched(
        self,
        request: Request,
        origin: Origin,
        answer: Answer | Later,
        since: float,
    ) -> Answer | Later:
        """As of :class:`~labmesh.transport.witness.Witness`."""
        kind = type(request)
        if kind not in ATTEMPTS or answer is None:
            return answer
        if isinstance(answer, Coroutine):
            return _Watched(self, request, origin, answer, since)
        if isinstance(answer, asyncio.Future):
            answer.add_done_callback(lambda done: self._came(request, origin, done, since))
            return answer
        self.answered(request, origin, answer, since)
        return answer

    def _came(
        self, request: Request, origin: Origin, done: asyncio.Future[Answer], since: float
    ) -> None:
        if done.cancelled():
            return
        error = done.exception()
        if error is None:
            self.answered(request, origin, done.result(), since)
        elif isinstance(error, LabmeshError):
            self.refused(request, origin, error, since)

    def answered(self, request: Request, origin: Origin, answer: Answer, since: float) -> None:
        """A request was done."""
        if type(request) not in ACTS:
            return
        reply = answer[0] if isinstance(answer, tuple) else answer
        shown = shown_fields(request)
        if isinstance(reply, Committed) and isinstance(request, UploadWhole | UploadCommit):
            record = reply.record
            shown = {"name": record.name, "size": record.size, "sha256": record.sha256}
        elif isinstance(reply, Lease):
            shown["fence"] = reply.fence
        self._put_request(request, origin, since, parameters=short_parameters(kwargs=shown))

    def refused(
        self, request: Request, origin: Origin, error: LabmeshError, since: float | None = None
    ) -> None:
        """As of :class:`~labmesh.transport.witness.Witness`."""
        is_refusal = isinstance(error, Forbidden | AuthenticationError)
        if not is_refusal and not self._is_act(request):
            return
        kind = (origin.user or origin.address, method_of(request), error.name)
        if self._takes(self._refusals, kind):
            shown = parameters_of(request, self._table)
            self._put_request(request, origin, since, parameters=shown, **failure_fields(error))

    def _is_act(self, request: Request) -> bool:
        """Whether it would have changed something."""
        if isinstance(request, Call) and self._table is not None:
            return not self._table.only_reads(request.method, request.access)
        return type(request) in ATTEMPTS

    def _put_request(
        self, request: Request, origin: Origin, since: float | None, **fields: Any
    ) -> None:
        what, method = ATTEMPTS.get(type(request), ("request", ""))
        took_s = 0.0 if since is None else time.monotonic() - since
        self._put(
            what=what,
            method=method or method_of(request),
            time=time.time() - took_s,
            user=origin.user or self._anybody,
            address=origin.address,
            object=str(getattr(request, "dataset_id", "") or self._id),
            call=getattr(request, "id", ""),
            duration_s=None if since is None else round(took_s, 6),
            **fields,
        )

    # ── connections and events, as of Witness ───────────────────────────────────────────────────

    def turned_away(self, address: str, door: str, why: str) -> None:
        """As of :class:`~labmesh.transport.witness.Witness`."""
        if self._takes(self._doors, (address, door, why)):
            self._put(
                what="connection",
                method=door,
                user=self._anybody,
                address=address,
                object=self._id,
                outcome="refused",
                text=clean_text(why),
            )

    def unheard(self, user: str, address: str, topic: str, why: str, text: str) -> None:
        """As of :class:`~labmesh.transport.witness.Witness`."""
        if self._takes(self._events, (user, why)):
            self._put(
                what="event",
                method="publish",
                user=user or self._anybody,
                address=address,
                object=clean_text(topic, 128),
                outcome="refused",
                error=why,
                text=clean_text(text),
            )

    def _takes(self, tally: Tally, kind: tuple[str, ...]) -> bool:
        with self._lock:
            return tally.takes(kind, time.monotonic())

    def _counted(self) -> list[Entry]:
        with self._lock:
            return self._tallied()

    def _tallied(self, *, at_end: bool = False) -> list[Entry]:
        now = time.monotonic()
        made = []
        for what, tally in (
            ("request", self._refusals),
            ("connection", self._doors),
            ("event", self._events),
        ):
            for kind, count in tally.all_due() if at_end else tally.due(now):
                made.append(counted_entry(self._node, self._id, what, kind, count))
        return made

    # ── calls and leases: the relay's, under its lock ───────────────────────────────────────────

    def describe(self, table: MethodTable) -> None:
        """The methods of the relay's driver."""
        self._table = table

    def begun(self, opened: OpenCall, request: Call | Batch) -> None:
        """A call that writes was taken; what it was given is kept as it is now."""
        methods: tuple[str, ...] = ()
        access = ""
        if isinstance(request, Batch):
            names = dict.fromkeys(each.method for each in read_entries(request.calls))
            methods = tuple(names)[:_METHODS]
        elif request.access == "set":
            access = "set"
        parameters = parameters_of(request, self._table)
        self._open[opened] = _Draft(time.time(), opened.method, methods, access, parameters)

    def ended(self, opened: OpenCall, outcome: Outcome) -> None:
        """A call has ended; of one that did not write nothing is known here."""
        draft = self._open.pop(opened, None)
        if draft is not None:
            failure = {} if outcome.error is None else failure_fields(outcome.error)
            self._put_call(opened, draft, **failure)

    def look(self, now: float) -> None:
        """A call that lasts has a line before its end: the node may not live to see that."""
        for opened, draft in self._open.items():
            if not draft.told and now - opened.accepted_at >= _LONG_CALL_S:
                draft.told = True
                self._put_call(opened, draft, outcome="running")

    def lease_ended(self, ended: Ended) -> None:
        """A lease was given back, left, broken, or ran out."""
        owner = ended.held.owner
        user = owner[0] if isinstance(owner, tuple) else ""
        facts = {key: each for key, each in ended.news().items() if each not in ("", None)}
        self._put(
            what="lease",
            method=str(facts.pop("change")),
            user=user or self._anybody,
            object=self._id,
            parameters=short_parameters(kwargs=facts),
        )

    def _put_call(self, opened: OpenCall, draft: _Draft, **fields: Any) -> None:
        origin = opened.origin
        self._put(
            what="call",
            time=draft.time,
            user=origin.user or self._anybody,
            address=origin.address,
            object=self._id,
            method=draft.method,
            methods=draft.methods,
            access=draft.access,
            parameters=draft.parameters,
            duration_s=round(time.monotonic() - opened.accepted_at, 6),
            call=opened.id,
            **fields,
        )

    # ── what nobody asked for ───────────────────────────────────────────────────────────────────

    def by_itself(self, method: str, dataset_id: str, why: str) -> None:
        """The bank did something to a dataset by a rule."""
        parameters = short_parameters(kwargs={"why": why})
        self._put(
            what="dataset", method=method, user=self._id, object=dataset_id, parameters=parameters
        )

    def _list_changed(self, guard: Guard) -> None:
        grants = _grants_of(guard)
        former, self._grants = self._grants, grants
        for key in former.keys() | grants.keys():
            before, after = former.get(key), grants.get(key)
            if before == after:
                continue
            method = "admit" if before is None else "remove" if after is None else "change"
            grant = after or before
            assert grant is not None
            self._put(
                what="access",
                method=method,
                user="the folder of keys",
                object=grant.name,
                parameters=short_parameters(kwargs=grant_facts(grant)),
            )


class _Watched(Coroutine[Any, Any, Answer]):
    """An answer that is yet to come; how it ends is recorded."""

    def __init__(
        self,
        audit: Audit,
        request: Request,
        origin: Origin,
        answer: Coroutine[Any, Any, Answer],
        since: float,
    ) -> None:
        self._audit = audit
        self._request, self._origin, self._since = request, origin, since
        self._answer = answer

    def send(self, value: Any) -> Any:
        return self._step(self._answer.send, value)

    def throw(self, *error: Any) -> Any:
        return self._step(self._answer.throw, *error)

    def close(self) -> None:
        self._answer.close()

    def __await__(self) -> Generator[Any, None, Answer]:
        return self._answer.__await__()

    def _step(self, step: Any, *arguments: Any) -> Any:
        try:
            return step(*arguments)
        except StopIteration as done:
            self._audit.answered(self._request, self._origin, done.value, self._since)
            raise
        except LabmeshError as exc:
            self._audit.refused(self._request, self._origin, exc, self._since)
            raise


def audit_of(security: Security, kind: str, node_id: str) -> Audit | None:
    """What records who does what at a node; None: nothing is recorded.

    :raises ConfigError: its folder cannot be used.
    """
    if kind not in ("broker", "relay", "bank"):
        return None
    has_keys = security.guard is not None
    path = audit_file(security.audit_dir, security.network, kind, node_id, has_keys=has_keys)
    if path is None:
        return None
    node = kind if kind == node_id else f"{kind} {node_id}"
    return Audit(path, node, anybody=_WHO.get(security.mode, "unknown"))


def _grants_of(guard: Guard) -> dict[str, Grant]:
    return {each.key: each for each in guard.told("").grants}
