"""What a line of the audit journal says of a request, of a failure, and of a key's rights."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Raw

from labmesh.errors import AuthenticationError, DriverError, Forbidden, LabmeshError, Locked
from labmesh.instruments.exposure import MethodTable
from labmesh.protocol.access import Grant, fingerprint
from labmesh.protocol.audit import Entry, clean_text, short_parameters
from labmesh.protocol.batches import BatchEntry, read_entries
from labmesh.protocol.messages import (
    Acquire,
    Annotate,
    Batch,
    BreakLease,
    Call,
    DeleteDataset,
    PurgeDataset,
    Release,
    Request,
    RestoreDataset,
    UploadAbort,
    UploadCommit,
    UploadStart,
    UploadWhole,
)
from labmesh.protocol.packs import PlainCall

__all__ = [
    "ACTS",
    "ATTEMPTS",
    "counted_entry",
    "failure_fields",
    "grant_facts",
    "method_of",
    "parameters_of",
    "shown_fields",
]

_CALLS_SHOWN = 16

#: Requests that are recorded when they were done: what they are about, and as what.
ACTS: dict[type[Request], tuple[str, str]] = {
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
ATTEMPTS: dict[type[Request], tuple[str, str]] = {
    Call: ("call", ""),
    PlainCall: ("call", ""),
    Batch: ("call", "batch"),
    Release: ("lease", "release"),
    UploadStart: ("upload", "start"),
    **ACTS,
}
#: What of a request stands in another field already, or is nobody's business.
_NOT_SHOWN = frozenset(
    ["id", "version", "target", "epoch", "deadline", "session", "dataset_id", "provenance", "meta"]
)


def parameters_of(request: Request, table: MethodTable | None) -> Raw:
    """What a request was given, cut short.

    :param table: the methods of the relay's driver, which say what of a call may be shown.
    """
    if isinstance(request, Call):
        given = BatchEntry(request.method, request.args, request.kwargs, request.access)
        return short_parameters(*_arguments(given, table))
    if isinstance(request, Batch):
        try:
            entries = read_entries(request.calls[:_CALLS_SHOWN])
        except LabmeshError:
            return short_parameters(kwargs={"calls": len(request.calls)})
        calls: list[Any] = []
        for each in entries:
            args, kwargs = _arguments(each, table)
            calls.append([each.method, *args, *([dict(kwargs)] if kwargs else [])])
        return short_parameters(kwargs={"count": len(request.calls), "calls": calls})
    return short_parameters(kwargs=shown_fields(request))


def _arguments(entry: BatchEntry, table: MethodTable | None) -> tuple[Any, Mapping[str, Any]]:
    if table is None:
        return entry.args, entry.kwargs
    return table.shown_arguments(entry.method, entry.args, entry.kwargs, entry.access)


def shown_fields(request: Request) -> dict[str, Any]:
    """The fields of a request that say something."""
    told = {
        key: getattr(request, key) for key in request.__struct_fields__ if key not in _NOT_SHOWN
    }
    return {key: each for key, each in told.items() if each not in (None, "", [], {}, ())}


def method_of(request: Request) -> str:
    """What a line calls the request: a call by its method, any other by what it does."""
    if isinstance(request, Call):
        return request.method
    return ATTEMPTS.get(type(request), ("", ""))[1] or str(request.__struct_config__.tag)


def failure_fields(error: LabmeshError) -> dict[str, Any]:
    """How a request failed, as fields of a line."""
    if isinstance(error, Forbidden | AuthenticationError | Locked):
        outcome = "refused"
    else:
        outcome = "not_run" if error.executed is False else "failed"
    name = error.exception_type if isinstance(error, DriverError) else type(error).__name__
    return {"outcome": outcome, "error": clean_text(name, 128), "text": clean_text(error.text)}


def grant_facts(grant: Grant) -> dict[str, Any]:
    """What a key may, without what it leaves open."""
    facts = {
        "role": grant.role,
        "fingerprint": fingerprint(grant.key),
        "relays": list(grant.relays),
        "deny": list(grant.methods_deny),
        "addresses": list(grant.addresses),
        "not_after": grant.not_after,
    }
    return {key: each for key, each in facts.items() if each}


def counted_entry(node: str, node_id: str, what: str, kind: Sequence[str], count: int) -> Entry:
    """The line for refusals that were only counted.

    :param kind: what they have in common; who was refused comes first.
    """
    text = f"{count} more like it: {', '.join(filter(None, kind))}"
    return Entry(
        time=time.time(),
        node=node,
        what=what,
        user=kind[0],
        object=node_id,
        outcome="refused",
        text=clean_text(text),
        count=count,
    )
