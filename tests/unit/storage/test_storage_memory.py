from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support.blob_contract import BlobCase, BlobContract, put, sha256_of
from tests.support.storage_contract import Storage, StorageContract

from labmesh.errors import NoSpace
from labmesh.storage.memory import MemoryBlobStore, MemoryCatalog


class TestMemoryStorage(StorageContract):
    @pytest.fixture
    def storage(self) -> Iterator[Storage]:
        blobs, catalog = MemoryBlobStore(), MemoryCatalog()
        yield blobs, catalog
        catalog.close()
        blobs.close()


class MemoryCase(BlobCase):
    def __init__(self) -> None:
        self.blobs = self.store = MemoryBlobStore()

    def reopen(self) -> MemoryBlobStore:
        self.store.close()
        return self.store

    def damage(self, sha256: str, offset: int) -> None:
        self.store.damage(sha256, offset)

    def cut(self, sha256: str, size: int) -> None:
        self.store.cut(sha256, size)

    def break_medium(self) -> None:
        self.store.break_medium("the medium is broken")

    def mend_medium(self) -> None:
        self.store.mend_medium()


class TestMemoryBlobs(BlobContract):
    @pytest.fixture
    def case(self) -> MemoryCase:
        return MemoryCase()


def test_a_full_store_refuses_a_stream_midway_and_takes_what_fits() -> None:
    blobs = MemoryBlobStore(capacity_bytes=100)
    name = put(blobs, b"a" * 60)
    part = blobs.begin()
    part.write(0, b"b" * 30)
    with pytest.raises(NoSpace):
        part.write(30, b"b" * 30)
    assert blobs.free_bytes() == 40
    put(blobs, b"c" * 40)
    assert blobs.read(name, 0, 60) == b"a" * 60
    assert blobs.read(sha256_of(b"c" * 40), 0, 40) == b"c" * 40
