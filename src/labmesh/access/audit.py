"""Who did what at one node: what sockets, calls, leases and banks tell its audit journal."""

from __future__ import annotations

import asyncio
import getpass
import threading
import time
from collections.abc import Coroutine, Generator, Mapping
from pathlib import Path
from typing import Any

import platformdirs
from msgspec import Raw, Struct

from labmesh.errors import (
    AuthenticationError,
    ConfigError,
    DriverError,
    Forbidden,
    LabmeshError,
    Locked,
)
from labmesh.instruments.exposure import MethodTable
from labmesh.instruments.jobs import Outcome
from labmesh.protocol.access import Grant, fingerprint
from labmesh.protocol.audit import Entry, Tally, clean_text, short_parameters
from labmesh.protocol.batches import BatchEntry, read_entries
from labmesh.protocol.leases import Ended
from labmesh.protocol.messages import (
    Acquire,
    Annotate,
    Batch,
    BreakLease,
    Call,
    Committed,
    DeleteDataset,
    Lease,
    PurgeDataset,
    Release,
    Request,
    RestoreDataset,
    UploadAbort,
    UploadCommit,
    UploadStart,
    UploadWhole,
)
from labmesh.protocol.open_call import OpenCall
from labmesh.storage.journal import Journal
from labmesh.transport.answering import Answer, Later, Origin
from labmesh.transport.keys import Guard, Security

__all__ = ["OFF", "Audit", "audit_file", "audit_of", "note_by_command"]

#: In the place of a folder: no journal.
OFF = "off"

#: A refusal of one kind is written so often a minute; the others are counted.
_REFUSALS = 20
#: A call that runs for longer has a line before its end as well.
_LONG_CALL_S = 2.0
_METHODS = 16
_CALLS_SHOWN = 16

#: Requests that are recorded when they were done: what they are about, and as what.
_ACTS: dict[type[Request], tuple[str, str]] = {
    Acquire: ("lease", "acquire"),
    BreakLease: ("lease", "break"),
    UploadWhole: ("upload", "upload"),
    UploadCommit: ("upload", "upload"),
    UploadAbort: ("upload", "abort"),
    Annotate: ("dataset", "annotate"),
    DeleteDataset: ("dataset", "delete"),
    RestoreDataset: ("dataset", "restore"),
    PurgeDataset: ("dataset", "purge"),
}
#: The same, only when they failed.
_ATTEMPTS: dict[type[Request], tuple[str, str]] = {
    Call: ("call", ""),
    Batch: ("call", "batch"),
    Release: ("lease", "release"),
    UploadStart: ("upload", "start"),
    **_ACTS,
}
#: What of a request stands in another field already, or is nobody's business.
_NOT_SHOWN = frozenset(
    ["id", "version", "target", "epoch", "deadline", "session", "dataset_id", "provenance", "meta"]
)
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

    :param journal: where lines go; :meth:`close` closes it.
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
        if kind not in _ATTEMPTS or answer is None:
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
        if type(request) not in _ACTS:
            return
        reply = answer[0] if isinstance(answer, tuple) else answer
        shown = _shown(request)
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
        kind = (origin.user or origin.address, _method_of(request), error.name)
        if self._takes(self._refusals, kind):
            shown = self._parameters(request)
            self._put_request(request, origin, since, parameters=shown, **_failure(error))

    def _is_act(self, request: Request) -> bool:
        """Whether it would have changed something."""
        if isinstance(request, Call) and self._table is not None:
            return not self._table.only_reads(request.method, request.access)
        return type(request) in _ATTEMPTS

    def _put_request(
        self, request: Request, origin: Origin, since: float | None, **fields: Any
    ) -> None:
        what, method = _ATTEMPTS.get(type(request), ("request", ""))
        took_s = 0.0 if since is None else time.monotonic() - since
        self._put(
            what=what,
            method=method or _method_of(request),
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
                text = f"{count} more like it: {', '.join(filter(None, kind))}"
                made.append(
                    Entry(
                        time=time.time(),
                        node=self._node,
                        what=what,
                        user=kind[0],
                        object=self._id,
                        outcome="refused",
                        text=clean_text(text),
                        count=count,
                    )
                )
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
        parameters = self._parameters(request)
        self._open[opened] = _Draft(time.time(), opened.method, methods, access, parameters)

    def ended(self, opened: OpenCall, outcome: Outcome) -> None:
        """A call has ended; of one that did not write nothing is known here."""
        draft = self._open.pop(opened, None)
        if draft is not None:
            failure = {} if outcome.error is None else _failure(outcome.error)
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

    def _parameters(self, request: Request) -> Raw:
        if isinstance(request, Call):
            given = BatchEntry(request.method, request.args, request.kwargs, request.access)
            return short_parameters(*self._arguments(given))
        if isinstance(request, Batch):
            try:
                entries = read_entries(request.calls[:_CALLS_SHOWN])
            except LabmeshError:
                return short_parameters(kwargs={"calls": len(request.calls)})
            calls: list[Any] = []
            for each in entries:
                args, kwargs = self._arguments(each)
                calls.append([each.method, *args, *([dict(kwargs)] if kwargs else [])])
            return short_parameters(kwargs={"count": len(request.calls), "calls": calls})
        return short_parameters(kwargs=_shown(request))

    def _arguments(self, entry: BatchEntry) -> tuple[Any, Mapping[str, Any]]:
        if self._table is None:
            return entry.args, entry.kwargs
        return self._table.shown_arguments(entry.method, entry.args, entry.kwargs, entry.access)

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
                parameters=short_parameters(kwargs=_grant_facts(grant)),
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


# ── where it is ─────────────────────────────────────────────────────────────────────────────────


def audit_file(
    audit_dir: str, network: str, kind: str, node_id: str, *, has_keys: bool
) -> Path | None:
    """The journal of a node; None: it has none.

    :param audit_dir: a folder, ``off``, or empty: the usual place where nodes have keys.
    """
    if audit_dir == OFF or not (audit_dir or has_keys):
        return None
    if audit_dir:
        folder = Path(audit_dir).expanduser().absolute()
    else:
        folder = platformdirs.user_state_path("labmesh", appauthor=False) / "audit" / network
    return folder / (f"{kind}.jsonl" if kind == node_id else f"{kind}-{node_id}.jsonl")


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


def note_by_command(audit_dir: str, network: str, method: str, name: str, **parameters: Any) -> str:
    """Note in the broker's journal what a command did to the list; why that failed, or nothing."""
    path = audit_file(audit_dir, network, "broker", "broker", has_keys=True)
    if path is None:
        return ""
    entry = Entry(
        time=time.time(),
        what="access",
        node="broker",
        user=f"local:{_system_user()}",
        object=name,
        method=method,
        parameters=short_parameters(kwargs=parameters),
    )
    try:
        Journal(path).append([entry])
    except (OSError, ConfigError) as exc:
        return f"this is not in the audit journal: {exc}"
    return ""


def _system_user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # the system knows no name
        return "unknown"


def _grants_of(guard: Guard) -> dict[str, Grant]:
    return {each.key: each for each in guard.told("").grants}


def _grant_facts(grant: Grant) -> dict[str, Any]:
    facts = {
        "role": grant.role,
        "fingerprint": fingerprint(grant.key),
        "relays": list(grant.relays),
        "deny": list(grant.methods_deny),
        "addresses": list(grant.addresses),
        "not_after": grant.not_after,
    }
    return {key: each for key, each in facts.items() if each}


def _shown(request: Request) -> dict[str, Any]:
    """The fields of a request that say something."""
    told = {
        key: getattr(request, key) for key in request.__struct_fields__ if key not in _NOT_SHOWN
    }
    return {key: each for key, each in told.items() if each not in (None, "", [], {}, ())}


def _method_of(request: Request) -> str:
    if isinstance(request, Call):
        return request.method
    return _ATTEMPTS.get(type(request), ("", ""))[1] or str(request.__struct_config__.tag)


def _failure(error: LabmeshError) -> dict[str, Any]:
    """How a request failed, as fields of a line."""
    if isinstance(error, Forbidden | AuthenticationError | Locked):
        outcome = "refused"
    else:
        outcome = "not_run" if error.executed is False else "failed"
    name = error.exception_type if isinstance(error, DriverError) else type(error).__name__
    return {"outcome": outcome, "error": clean_text(name, 128), "text": clean_text(error.text)}
