"""How uploads end: the bytes in the store, and then the record in the catalogue."""

from __future__ import annotations

import logging
import time

from msgspec.structs import replace

from labmesh.errors import StorageError
from labmesh.protocol.messages import DatasetRecord
from labmesh.protocol.upload_limits import check_same
from labmesh.storage.base import BlobStore, Catalog, Part

__all__ = ["UploadEnds"]

log = logging.getLogger(__name__)


class UploadEnds:
    """Makes datasets of parts. Every method blocks: it is called in a thread."""

    def __init__(self, store: BlobStore, catalog: Catalog) -> None:
        self._store = store
        self._catalog = catalog

    def finish(self, part: Part, record: DatasetRecord) -> DatasetRecord:
        """Store a part, and the record of it, durably; the record as it is acknowledged."""
        try:
            part.finish(record.size, record.sha256)
            return replace(self._catalog.add(record), provenance={})
        finally:
            # Not before the record is there: until then this is what an interrupted sender has.
            part.discard()

    def store_whole(self, record: DatasetRecord, body: memoryview) -> DatasetRecord:
        """The same for a dataset that came in one message; one that is stored is that one."""
        stored = self._catalog.get(record.dataset_id)
        if stored is not None:
            same = check_same(stored, record.size, record.sha256)
            if self._has_bytes(stored):
                return same
        # Start and commit are the same moment, and so are the states.
        provenance = {**record.provenance, "committed": time.time()}
        part = self._store.begin(record.size)
        try:
            if record.size:
                part.write(0, body)
        except BaseException:
            part.discard()
            raise
        return self.finish(part, replace(record, provenance=provenance))

    def whole_one(self, dataset_id: str) -> DatasetRecord | None:
        """The record of this id, unless its bytes are gone: then they are taken once more."""
        stored = self._catalog.get(dataset_id)
        return stored if stored is not None and self._has_bytes(stored) else None

    def _has_bytes(self, stored: DatasetRecord) -> bool:
        """A look at the first piece: not even an object that was set aside answers that."""
        try:
            self._store.read(stored.sha256, 0, min(1, stored.size))
        except StorageError as exc:
            log.warning("dataset %s is taken again: %s", stored.dataset_id, exc)
            return False
        return True
