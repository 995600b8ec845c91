"""What a request asks of a driver, as the job that does it."""

from __future__ import annotations

from labmesh.errors import BadArguments, LabmeshError
from labmesh.instruments.exposure import BoundCall, MethodTable
from labmesh.protocol.batches import BatchEntry, read_entries
from labmesh.protocol.messages import Batch, Call
from labmesh.serving.served import ServedBatch, ServedCall, ServedStream

__all__ = ["job_of_batch", "job_of_call"]


def job_of_call(table: MethodTable, call: Call) -> ServedCall | ServedStream:
    """The job of one call; it has still to be opened.

    :raises UnknownMethod, BadArguments: the driver has no such method, or not with these arguments.
    """
    bound = table.bind(call.method, call.args, call.kwargs, call.access)
    return ServedStream(bound, _credit(call)) if bound.yields else ServedCall(bound)


def job_of_batch(table: MethodTable, batch: Batch, relay_id: str) -> ServedBatch:
    """The job of a batch: each of its calls is checked before any of them runs.

    :raises LabmeshError: one of them cannot be; the detail has its index.
    """
    bound = [_bound(table, index, each) for index, each in enumerate(read_entries(batch.calls))]
    return ServedBatch(bound, keep_going=batch.keep_going, relay_id=relay_id)


def _bound(table: MethodTable, index: int, entry: BatchEntry) -> BoundCall:
    try:
        bound = table.bind(entry.method, entry.args, entry.kwargs, entry.access)
        if bound.yields:
            raise BadArguments(f"{entry.method} yields its values, and a batch has no room")
    except LabmeshError as exc:
        text = f"call {index + 1} of this batch: {exc}; nothing of it was run"
        raise type(exc)(text, **{**exc.detail, "index": index}) from exc
    return bound


def _credit(call: Call) -> int:
    """How many items its caller takes at first."""
    if not call.credit:
        raise BadArguments(
            f"{call.method} yields its values one by one: iterate over "
            f"relay.stream({call.method!r}), or 'for value in psu.{call.method}()'",
            method=call.method,
        )
    return call.credit
