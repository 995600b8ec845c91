"""The storage seam in memory: the twins that tests and demonstrations use."""

from __future__ import annotations

from labmesh.storage.memory_catalog import MemoryCatalog
from labmesh.storage.memory_objects import MemoryBlobStore

__all__ = ["MemoryBlobStore", "MemoryCatalog"]
