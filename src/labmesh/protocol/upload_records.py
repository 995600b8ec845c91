"""From what a sender asks for to the record of the dataset."""

from __future__ import annotations

from labmesh.protocol.ids import check_id
from labmesh.protocol.messages import DatasetRecord, UploadStart, UploadWhole

__all__ = ["begun_as", "check_ids", "record_of"]


def check_ids(request: UploadStart | UploadWhole) -> None:
    """Refuse an id that breaks the rule for ids."""
    check_id(request.dataset_id, "dataset id")
    if request.relay_id:
        check_id(request.relay_id, "relay id")
    for parent in request.parents:
        check_id(parent, "dataset id of a parent")


def begun_as(request: UploadWhole, size: int) -> UploadStart:
    """The start of an upload that nobody can resume: it is asked for as a whole again."""
    return UploadStart(
        id=request.id,
        dataset_id=request.dataset_id,
        session="",
        size=size,
        sha256=request.sha256,
        relay_id=request.relay_id,
        name=request.name,
        kind=request.kind,
        meta=request.meta,
        parents=request.parents,
        tags=request.tags,
        provenance=request.provenance,
    )


def record_of(
    start: UploadStart, size: int, sha256: str, created: float, bank_id: str
) -> DatasetRecord:
    """The record of an upload that has ended; the catalog numbers it."""
    return DatasetRecord(
        dataset_id=start.dataset_id,
        size=size,
        sha256=sha256,
        bank_id=bank_id,
        relay_id=start.relay_id,
        name=start.name,
        kind=start.kind,
        created=created,
        meta=start.meta,
        parents=start.parents,
        tags=list(dict.fromkeys(start.tags)),
        provenance=start.provenance,
    )
