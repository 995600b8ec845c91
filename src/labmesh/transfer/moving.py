"""Uploads and downloads, for relays, banks and clients."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from labmesh.content import Content, open_source
from labmesh.node import security_of_node
from labmesh.protocol.addresses import parse_connect
from labmesh.protocol.ids import check_id
from labmesh.protocol.messages import DatasetId, DatasetRecord, UploadStart
from labmesh.protocol.meta import plain_meta
from labmesh.provenance import sender_facts
from labmesh.transfer.download_run import AskFetch, download
from labmesh.transfer.upload_links import own_link, shared_link
from labmesh.transfer.upload_run import Progress, UploadRun, UploadSettings
from labmesh.transport.keys import Security
from labmesh.transport.large_memory import keep_freed_memory
from labmesh.transport.sockets import Sockets

__all__ = [
    "AskFetch",
    "Progress",
    "UploadSettings",
    "download",
    "new_dataset_id",
    "upload",
    "upload_dataset",
]

#: One reads the source while another hashes.
_THREADS = 2


async def upload_dataset(
    ingest: str,
    content: Content,
    *,
    relay_id: str = "",
    meta: Mapping[str, Any] | None = None,
    name: str = "",
    dataset_id: str | None = None,
    timeout: float = 10.0,
    retries: int = 5,
    chunk: int = 1_000_000,
    progress: Progress | None = None,
    security: Security | None = None,
) -> str:
    """Store a dataset in the bank at ``ingest``; returns its id once it is verified and on disk.

    A bank that is restarted meanwhile is waited for, and the upload goes on where it was. It is
    given up after more than ``retries`` tries in a row without progress, and not before
    ``retries * timeout`` seconds without it.

    :param ingest: the bank's ingest endpoint, such as ``tcp://127.0.0.1:5761``.
    :param content: bytes, a path, a binary file, or an (async) iterator of bytes.
    :param meta: what is worth knowing about it; plain values.
    :param dataset_id: its id; by default a new one, which begins with date and time (UTC).
    :param timeout: seconds that one step may take.
    :param retries: breaks in a row, without progress between them, that are survived.
    :param chunk: bytes sent at a time.
    :raises ConnectionError: the bank could not be reached.
    :raises TimeoutError: it did not answer.
    :raises Conflict: the id is taken by other content, which is kept.
    :raises NoSpace: the bank is full.
    """
    endpoint = str(parse_connect(ingest))
    sockets = Sockets(security_of_node(security, "client", "upload"), "upload")
    sockets.expect_bank(endpoint)
    try:
        record = await upload(
            sockets,
            endpoint,
            content,
            settings=UploadSettings(timeout, retries, chunk),
            relay_id=relay_id,
            name=name,
            meta=meta,
            dataset_id=dataset_id,
            provenance=sender_facts(),
            progress=progress,
        )
    finally:
        sockets.close_all()
    return record.dataset_id


async def upload(
    sockets: Sockets,
    endpoint: str,
    content: Content,
    *,
    settings: UploadSettings,
    relay_id: str = "",
    name: str = "",
    kind: str = "bytes",
    meta: Mapping[str, Any] | None = None,
    dataset_id: str | None = None,
    parents: Sequence[str] = (),
    tags: Sequence[str] = (),
    provenance: Mapping[str, Any] | None = None,
    session: str | None = None,
    progress: Progress | None = None,
) -> DatasetRecord:
    """:func:`upload_dataset` with a node's sockets; returns the record.

    :param session: of an upload that may be open since an earlier process, and will be gone on with
        by a later one: it is not aborted when this one ends. None: a new one.
    """
    start = UploadStart(
        id="-",
        dataset_id=DatasetId(check_id(dataset_id or new_dataset_id(), "dataset id")),
        session=session or secrets.token_hex(16),
        relay_id=relay_id,
        name=name,
        kind=kind,
        meta=plain_meta(meta or {}),
        parents=[DatasetId(each) for each in parents],
        tags=list(tags),
        provenance=dict(provenance or {}),
    )
    keep_freed_memory()
    executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="labmesh-upload")
    try:
        source = await open_source(content, executor)
        try:
            small = source.size is not None and source.size <= settings.whole_bytes
            async with (shared_link if small else own_link)(sockets, endpoint) as link:
                run = UploadRun(link, source, start, settings, executor, progress)
                return await run.run(keep=session is not None)
        finally:
            source.close()
    finally:
        executor.shutdown(wait=False)


def new_dataset_id() -> str:
    """A fresh id: date and time (UTC), and chance."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"
