"""Which messages go where."""

from __future__ import annotations

from labmesh.protocol.messages.access import AccessList, WatchAccess
from labmesh.protocol.messages.bank import (
    Annotate,
    ChunkStored,
    Committed,
    DatasetPage,
    DeleteDataset,
    Fetch,
    Fetched,
    GetDataset,
    GetHistory,
    History,
    ListDatasets,
    ListTrash,
    PurgeDataset,
    RestoreDataset,
    SearchDatasets,
    TrashPage,
    UploadAbort,
    UploadChunk,
    UploadCommit,
    UploadGranted,
    UploadStart,
    UploadWhole,
    Verified,
    VerifyDataset,
)
from labmesh.protocol.messages.calls import (
    Alive,
    Batch,
    BatchResult,
    Call,
    CallState,
    Cancel,
    GetCall,
    Item,
    More,
    Result,
)
from labmesh.protocol.messages.descriptions import Describe, Description
from labmesh.protocol.messages.directory import (
    Goodbye,
    Heartbeat,
    Hello,
    LastEvents,
    ListLast,
    ListNodes,
    Mark,
    NodeList,
    Replay,
    Welcome,
)
from labmesh.protocol.messages.leases import Acquire, BreakLease, Lease, Release, Renew
from labmesh.protocol.messages.node import Done, Failure, GetStatus, Ping, Pong, Status

__all__ = [
    "DIRECTORY_REQUESTS",
    "INGEST_REQUESTS",
    "RELAY_REQUESTS",
    "REPLIES",
    "RETRIEVE_REQUESTS",
]

#: What a node's ROUTER socket decodes, by socket.
DIRECTORY_REQUESTS = (
    Ping,
    GetStatus,
    Hello,
    Heartbeat,
    Goodbye,
    ListNodes,
    Mark,
    ListLast,
    Replay,
    WatchAccess,
)
RELAY_REQUESTS = (
    Ping,
    GetStatus,
    Call,
    Batch,
    Cancel,
    More,
    GetCall,
    Acquire,
    Renew,
    Release,
    BreakLease,
    Describe,
)
INGEST_REQUESTS = (
    Ping,
    GetStatus,
    UploadWhole,
    UploadStart,
    UploadChunk,
    UploadCommit,
    UploadAbort,
)
RETRIEVE_REQUESTS = (
    Ping,
    GetStatus,
    ListDatasets,
    SearchDatasets,
    GetDataset,
    GetHistory,
    Annotate,
    DeleteDataset,
    RestoreDataset,
    PurgeDataset,
    ListTrash,
    VerifyDataset,
    Fetch,
)

#: What a caller's DEALER socket decodes.
REPLIES = (
    Pong,
    Done,
    Failure,
    Status,
    Welcome,
    NodeList,
    LastEvents,
    AccessList,
    Alive,
    Item,
    Result,
    BatchResult,
    CallState,
    Lease,
    Description,
    UploadGranted,
    ChunkStored,
    Committed,
    DatasetPage,
    History,
    TrashPage,
    Verified,
    Fetched,
)
