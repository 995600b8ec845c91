"""Datasets in a folder of one bank::

    LOCK                      held by the bank that is running; names its process
    parts/00000001.part       bytes of an unfinished upload
    parts/00000001.json       how many of them are durable, and the note of the upload
    objects/aa/aa01...        the bytes of datasets, named by their SHA-256
    objects/aa/aa01....sums   sums of its pieces, where it has more than one
    quarantine/aa01...        what was found damaged
    records/<dataset id>.json one record a dataset; these files are the truth
    notes/<dataset id>.jsonl  annotations of it
    trash/<dataset id>.json   a dataset that was deleted, until its grace period ends
    catalog.sqlite            an index of the records; made from them anew when it is missing

What is finished is written, synced, renamed, and its folder synced, in this order; so a name in
``objects`` or ``records`` stands for whole content, at any moment and after a power cut. A file
whose sync failed is abandoned: the kernel may have dropped its bytes while a second sync of the
same file would report success. Files of others in these folders are left alone.
"""

from __future__ import annotations

import os

from labmesh.storage.catalog import FileCatalog
from labmesh.storage.fileops import FileOps
from labmesh.storage.objects import FileBlobStore

__all__ = ["FileBlobStore", "FileCatalog", "open_folder"]


def open_folder(
    root: str | os.PathLike[str], *, ops: FileOps | None = None, quota_bytes: int | None = None
) -> tuple[FileBlobStore, FileCatalog]:
    """Open the data folder of a bank, which is created if need be. Close the catalog first.

    :param quota_bytes: as of :class:`FileBlobStore`.

    :raises ConfigError: the folder cannot be created or written.
    :raises StorageError: another bank holds it.
    """
    blobs = FileBlobStore(root, ops=ops, quota_bytes=quota_bytes)
    try:
        return blobs, FileCatalog(root, ops=ops, health=blobs.health)
    except BaseException:
        blobs.close()
        raise
