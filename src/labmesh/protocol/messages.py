"""Every message shape, with its limits in the type. ``docs/wire.md`` describes them one by one.

A message is one tagged struct (its ``type`` field is the tag) in the header frame, followed by the
buffers that it refers to. A *request* goes to the ROUTER socket of a broker, relay or bank and is
answered with one *reply* that echoes its ``id`` (before which :class:`Alive` signs may come). An
*event* is published under a topic and passes the broker's proxy.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NewType

from msgspec import Meta, Struct, field

#: The version of this protocol; a request with another one is refused with code 415.
PROTOCOL_VERSION = 1

#: Ids and names: ASCII, no path separators, no leading dot or dash.
ID_PATTERN = r"^[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9_-])?\Z"

NodeId = NewType("NodeId", str)
Epoch = NewType("Epoch", str)
CallId = NewType("CallId", str)
DatasetId = NewType("DatasetId", str)

_Id = Meta(pattern=ID_PATTERN, max_length=128)
_Epoch = Meta(max_length=64)
_ShortText = Meta(max_length=256)
_LongText = Meta(max_length=65_536)
_Sha256 = Meta(pattern=r"^[0-9a-f]{64}\Z")
_Size = Meta(ge=0, le=2**53)

NodeKind = Literal["broker", "relay", "bank"]
LiveState = Literal["live", "suspect"]


class Message(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """Root of requests and replies.

    ``value_fields`` names the fields whose arrays and large bytes travel as frames of their own
    (in all other fields values travel inside the header). ``has_body`` says that one raw buffer
    follows the header.
    """

    value_fields: ClassVar[tuple[str, ...]] = ()
    has_body: ClassVar[bool] = False


class Request(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What every request carries."""

    #: chosen by the caller, echoed in each reply; unique among the caller's open calls
    id: Annotated[str, Meta(min_length=1, max_length=64)]
    version: int = PROTOCOL_VERSION
    #: the node that is meant; a port that another node took over must not answer for it
    target: Annotated[str, Meta(max_length=128)] = ""
    #: the incarnation of the target that the caller knows; empty: any
    epoch: Annotated[str, _Epoch] = ""
    #: seconds of the *target's* monotonic clock after which the request must not be begun
    deadline: float | None = None


class Reply(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What every reply carries: the id of its request."""

    id: Annotated[str, Meta(max_length=64)]


# ── every node ──────────────────────────────────────────────────────────────────────────────────


class Ping(Request, frozen=True, kw_only=True, omit_defaults=True, tag="ping"):
    """Are you there, which incarnation, what does your clock say? → Pong"""


class Pong(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="pong"):
    """The answer to Ping; ``clock`` is the node's monotonic clock in seconds."""

    node_id: str
    epoch: str
    clock: float


class Done(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="done"):
    """It was done; there is nothing more to say."""


class Failure(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="error"):
    """It was refused or failed: code and name of errors.py, a sentence, facts for a program."""

    code: int
    name: Annotated[str, Meta(max_length=64)]
    text: Annotated[str, _LongText] = ""
    retryable: bool = False
    detail: dict[str, Any] = field(default_factory=dict)


class GetStatus(Request, frozen=True, kw_only=True, omit_defaults=True, tag="get_status"):
    """What are you doing? → Status. Answered by the node's loop, also while its driver blocks."""


class Status(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="status"):
    """The answer to GetStatus. ``facts`` depends on the kind of node; ages are in seconds."""

    node_id: str
    kind: NodeKind
    epoch: str
    uptime_s: float
    facts: dict[str, Any] = field(default_factory=dict)


# ── directory (broker) ──────────────────────────────────────────────────────────────────────────


class NodeRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the directory."""

    node_id: Annotated[NodeId, _Id]
    kind: Literal["relay", "bank"]
    epoch: Annotated[Epoch, Meta(min_length=1, max_length=64)]
    #: ``rpc`` of a relay; ``ingest`` and ``retrieve`` of a bank; each ``tcp://host:port``
    endpoints: Annotated[
        dict[Annotated[str, Meta(max_length=16)], Annotated[str, _ShortText]], Meta(max_length=4)
    ]
    #: what is behind it: the driver's class, the bank's folder name
    title: Annotated[str, _ShortText] = ""
    host: Annotated[str, _ShortText] = ""
    pid: int = 0
    software: Annotated[str, Meta(max_length=64)] = ""
    heartbeat_s: Annotated[float, Meta(gt=0, le=3600)] = 5.0
    #: filled in by the broker
    state: LiveState = "live"


class Hello(Request, frozen=True, kw_only=True, omit_defaults=True, tag="hello"):
    """Register this node → Welcome, or 409 while another live node owns the id or an endpoint."""

    node: NodeRecord


class Welcome(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="welcome"):
    """Registered. The registration ends ``ttl_s`` after the last heartbeat."""

    broker_epoch: str
    ttl_s: float


class Heartbeat(Request, frozen=True, kw_only=True, omit_defaults=True, tag="heartbeat"):
    """Still here → Welcome, or 404 from a broker that does not know the node (say Hello again)."""

    node_id: Annotated[NodeId, _Id]
    node_epoch: Annotated[Epoch, _Epoch]


class Goodbye(Request, frozen=True, kw_only=True, omit_defaults=True, tag="goodbye"):
    """Leaving now → Done."""

    node_id: Annotated[NodeId, _Id]
    node_epoch: Annotated[Epoch, _Epoch]


class ListNodes(Request, frozen=True, kw_only=True, omit_defaults=True, tag="list_nodes"):
    """Who is here? → NodeList"""


class NodeList(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="node_list"):
    """The directory, sorted by kind and id."""

    broker_epoch: str
    nodes: list[NodeRecord]


class Mark(Request, frozen=True, kw_only=True, omit_defaults=True, tag="mark"):
    """Publish an empty event under ``mark.<token>`` → Done.

    A subscriber that asked for ``mark.<token>`` after its other subscriptions, and receives it,
    knows that all of them are in force: no event from then on can be missed unseen.
    """

    token: Annotated[str, _Id]


class ListLast(Request, frozen=True, kw_only=True, omit_defaults=True, tag="list_last"):
    """The last event of each state topic that begins with ``prefix``, → LastEvents.

    ``after`` continues behind that topic: a page holds at most 128 KiB.
    """

    prefix: Annotated[str, Meta(max_length=200)] = ""
    after: Annotated[str, Meta(max_length=200)] = ""


class LastEvent(Struct, frozen=True, kw_only=True):
    """The frames of an event as the broker forwarded it."""

    topic: str
    header: bytes
    payload: bytes


class LastEvents(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="last_events"):
    """A page of last events, sorted by topic; ``more``: ask again after the last topic."""

    events: list[LastEvent]
    more: bool = False


# ── relay ───────────────────────────────────────────────────────────────────────────────────────

_CallId = Meta(min_length=1, max_length=64)
_Session = Meta(max_length=64)

#: What a call does with its name: run a method, read a value, write a value.
Access = Literal["call", "get", "set"]


class SessionRequest(Request, frozen=True, kw_only=True, omit_defaults=True):
    """A request of a client that can be known again over another connection.

    ``session`` is a random token of the client's, which nobody else can know. With it a call that
    is sent again under its id, over whatever connection, runs once, and its reply is kept for who
    asks again. Without it a client is its connection, and a repeated id is a new call as soon as
    the one before has ended.
    """

    session: Annotated[str, _Session] = ""


class Invocation(SessionRequest, frozen=True, kw_only=True, omit_defaults=True):
    """What moves an instrument: :class:`Call` and :class:`Batch`."""

    #: the lease under which this is sent; 0: none. Another lease than the one in force is a 423
    fence: Annotated[int, Meta(ge=0, le=2**53)] = 0


class Call(Invocation, frozen=True, kw_only=True, omit_defaults=True, tag="call"):
    """Run a driver's method, or read or write one of its values → Alive* then Result or Failure.

    A method that yields is answered with Items before its Result: as many as ``credit`` and
    :class:`More` allow. With a credit of 0 it is refused.
    """

    value_fields: ClassVar[tuple[str, ...]] = ("args", "kwargs")

    method: Annotated[str, _ShortText]
    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    access: Access = "call"
    credit: Annotated[int, Meta(ge=0, le=1024)] = 0


class Batch(Invocation, frozen=True, kw_only=True, omit_defaults=True, tag="batch"):
    """Several calls, back to back, with nothing of anybody else between them → Alive* BatchResult.

    ``calls`` has an entry ``[method, args, kwargs, access]`` each. All are checked before the first
    one runs. ``keep_going``: also behind one that failed.
    """

    value_fields: ClassVar[tuple[str, ...]] = ("calls",)

    calls: list[Any]
    keep_going: bool = False


class Cancel(SessionRequest, frozen=True, kw_only=True, omit_defaults=True, tag="cancel"):
    """Take back a call of this client → Done; the call ends with 499.

    404: no such call is open. 409: it has begun; a generator or coroutine is told to end, any other
    method is told when it asks.
    """

    call: Annotated[str, _CallId]


class More(SessionRequest, frozen=True, kw_only=True, omit_defaults=True, tag="more"):
    """So many more items of an open call can be taken → Done, or 404."""

    call: Annotated[str, _CallId]
    credit: Annotated[int, Meta(ge=1, le=1024)]


class GetCall(SessionRequest, frozen=True, kw_only=True, omit_defaults=True, tag="get_call"):
    """What became of a call? → CallState. One that never arrived will not run after this answer."""

    call: Annotated[str, _CallId]
    #: seconds since it was sent, as the client knows it
    age_s: Annotated[float, Meta(ge=0)] = 0.0


class Alive(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="alive"):
    """A sign of life of an open call: it waits in the queue, or runs. Sent about once a second."""

    state: Literal["queued", "running"]


class Item(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="item"):
    """One of the values that a method yields, counted from 0."""

    value_fields: ClassVar[tuple[str, ...]] = ("value",)

    index: Annotated[int, Meta(ge=0, le=2**53)]
    value: Any = None


class Result(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="result"):
    """What the method returned."""

    value_fields: ClassVar[tuple[str, ...]] = ("value",)

    value: Any = None


class BatchResult(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="batch_result"):
    """One entry for each call that ran or failed, in order; what is missing did not run.

    ``outcomes`` has ``[value]`` or ``[name, text, detail]`` (as in Failure).
    """

    value_fields: ClassVar[tuple[str, ...]] = ("outcomes",)

    outcomes: list[Any]


#: How a call stands, or ended. ``unknown``: it is too long ago, or this relay was restarted since.
CallOutcome = Literal["queued", "running", "returned", "raised", "not_run", "unknown"]


class CallState(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="call_state"):
    """The answer to GetCall."""

    value_fields: ClassVar[tuple[str, ...]] = ("value",)

    state: CallOutcome
    method: Annotated[str, _ShortText] = ""
    #: seconds since it began to wait, to run, or ended
    age_s: float = 0.0
    #: what it returned, where that was kept
    value: Any = None
    kept: bool = False
    #: how it failed, as in Failure
    error: Annotated[str, Meta(max_length=64)] = ""
    text: Annotated[str, _LongText] = ""
    detail: dict[str, Any] = field(default_factory=dict)


class Acquire(SessionRequest, frozen=True, kw_only=True, omit_defaults=True, tag="acquire"):
    """Have this client be the only one that may write → Lease; 423 while another one is."""

    ttl_s: Annotated[float, Meta(gt=0, le=86_400)] = 10.0
    #: why, for who finds it locked
    note: Annotated[str, _ShortText] = ""
    #: who, as they call themselves
    holder: Annotated[str, _ShortText] = ""


class Renew(SessionRequest, frozen=True, kw_only=True, omit_defaults=True, tag="renew"):
    """The holder lives → Lease, or 423: the lease is over."""

    fence: Annotated[int, Meta(ge=1, le=2**53)]


class Release(SessionRequest, frozen=True, kw_only=True, omit_defaults=True, tag="release"):
    """End a lease → Done. ``abandoned``: its holder ends in the middle of its work."""

    fence: Annotated[int, Meta(ge=1, le=2**53)]
    abandoned: bool = False


class BreakLease(SessionRequest, frozen=True, kw_only=True, omit_defaults=True, tag="break_lease"):
    """End somebody else's lease → Done; 404: there is none, 409: another one than ``fence``."""

    fence: Annotated[int, Meta(ge=0, le=2**53)] = 0
    reason: Annotated[str, _ShortText] = ""
    by: Annotated[str, _ShortText] = ""


class Lease(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="lease"):
    """A lease as it stands. Fences grow with each grant of one relay's epoch."""

    fence: int
    ttl_s: float
    left_s: float
    holder: str = ""
    note: str = ""
    #: seconds since it was granted
    age_s: float = 0.0


class Describe(Request, frozen=True, kw_only=True, omit_defaults=True, tag="describe"):
    """What can your driver do? → Description"""


class ValueLimits(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a value or an argument may be, as far as its driver says."""

    unit: Annotated[str, Meta(max_length=64)] = ""
    lowest: float | None = None
    highest: float | None = None
    #: the values that are allowed, as they are written in Python
    choices: Annotated[list[str], Meta(max_length=256)] = field(default_factory=list)


class MethodInfo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One callable method."""

    name: str
    signature: Annotated[str, Meta(max_length=4096)] = "()"
    doc: Annotated[str, _LongText] = ""
    #: it changes nothing: it may be called while another client holds a lease
    read_only: bool = False
    #: to run it twice is to run it once: it is sent again when the link breaks
    idempotent: bool = False
    #: it yields its values one by one
    yields: bool = False
    #: seconds that it may run; 0: as long as it takes
    timeout_s: float = 0.0
    #: parameter → its unit and limits; ``return`` → those of what it returns
    limits: dict[str, ValueLimits] = field(default_factory=dict)


class ValueInfo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One value that can be read, and written where it is settable: a property or parameter."""

    name: str
    doc: Annotated[str, _LongText] = ""
    #: the annotation, as Python writes it; empty: not said
    type: Annotated[str, _ShortText] = ""
    gettable: bool = True
    settable: bool = False
    limits: ValueLimits = field(default_factory=ValueLimits)


class Description(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="description"):
    """The driver behind a relay: class, docstring, methods, values."""

    node_id: str
    epoch: str
    driver: str
    methods: list[MethodInfo]
    values: list[ValueInfo] = field(default_factory=list)
    doc: Annotated[str, _LongText] = ""
    #: seconds between states; 0: the driver has no ``poll()``
    state_interval_s: float = 0.0


# ── bank ────────────────────────────────────────────────────────────────────────────────────────


class DatasetRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a bank knows of one stored dataset."""

    dataset_id: Annotated[DatasetId, _Id]
    size: Annotated[int, _Size]
    sha256: Annotated[str, _Sha256]
    bank_id: Annotated[str, Meta(max_length=128)]
    relay_id: Annotated[str, Meta(max_length=128)] = ""
    name: Annotated[str, _ShortText] = ""
    #: how ``read()`` turns the bytes back: ``bytes``, ``npy``, ``text``, ``json``
    kind: Annotated[str, Meta(max_length=32)] = "bytes"
    #: POSIX seconds (UTC) at commit
    created: float = 0.0
    #: position in the bank's order of commits, from 1
    sequence: int = 0
    meta: dict[str, Any] = field(default_factory=dict)


class UploadStart(Request, frozen=True, kw_only=True, omit_defaults=True, tag="upload_start"):
    """Begin or resume an upload → UploadGranted, or Committed when it is already stored whole.

    A dataset of this id that is stored is a 409, unless ``sha256`` shows that it is the same.
    """

    dataset_id: Annotated[DatasetId, _Id]
    #: a fresh random token; only its bearer may send chunks or resume
    session: Annotated[str, Meta(min_length=8, max_length=64)]
    #: bytes; None: a stream whose length is not known yet
    size: Annotated[int, _Size] | None = None
    #: of the whole content, where the sender knows it already
    sha256: Annotated[str, _Sha256] | None = None
    relay_id: Annotated[str, Meta(max_length=128)] = ""
    name: Annotated[str, _ShortText] = ""
    kind: Annotated[str, Meta(max_length=32)] = "bytes"
    meta: dict[str, Any] = field(default_factory=dict)


class UploadGranted(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="upload_granted"):
    """Send from ``offset`` on, at most ``window`` chunks unanswered, each ≤ ``chunk_bytes``."""

    offset: Annotated[int, _Size]
    chunk_bytes: int
    window: int


class UploadChunk(Request, frozen=True, kw_only=True, omit_defaults=True, tag="upload_chunk"):
    """One piece; its bytes are the frame behind the header → ChunkStored.

    A repeat of stored bytes is acknowledged; a gap is a 409 whose detail has ``offset``.
    """

    has_body: ClassVar[bool] = True

    dataset_id: Annotated[DatasetId, _Id]
    session: Annotated[str, Meta(min_length=8, max_length=64)]
    offset: Annotated[int, _Size]


class ChunkStored(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="chunk_stored"):
    """Written: everything before ``offset``."""

    offset: Annotated[int, _Size]


class UploadCommit(Request, frozen=True, kw_only=True, omit_defaults=True, tag="upload_commit"):
    """That was all → Committed once size and digest are checked and the bytes are on disk."""

    dataset_id: Annotated[DatasetId, _Id]
    session: Annotated[str, Meta(min_length=8, max_length=64)]
    size: Annotated[int, _Size]
    sha256: Annotated[str, _Sha256]


class Committed(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="committed"):
    """Stored, verified and durable."""

    record: DatasetRecord


class UploadAbort(Request, frozen=True, kw_only=True, omit_defaults=True, tag="upload_abort"):
    """Forget an unfinished upload → Done."""

    dataset_id: Annotated[DatasetId, _Id]
    session: Annotated[str, Meta(min_length=8, max_length=64)]


class ListDatasets(Request, frozen=True, kw_only=True, omit_defaults=True, tag="list_datasets"):
    """A page of records in commit order, after ``after`` → DatasetPage."""

    after: Annotated[int, Meta(ge=0)] = 0
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    newest_first: bool = False


class DatasetPage(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="dataset_page"):
    """Records; ``more``: there are others behind the last one."""

    records: list[DatasetRecord]
    more: bool = False


class GetDataset(Request, frozen=True, kw_only=True, omit_defaults=True, tag="get_dataset"):
    """The record of one dataset → Committed, or 404."""

    dataset_id: Annotated[DatasetId, _Id]


class Fetch(Request, frozen=True, kw_only=True, omit_defaults=True, tag="fetch"):
    """``size`` bytes of a dataset from ``offset`` on → Fetched."""

    dataset_id: Annotated[DatasetId, _Id]
    offset: Annotated[int, _Size] = 0
    size: Annotated[int, Meta(ge=1, le=8 * 2**20)]


class Fetched(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="fetched"):
    """Bytes of a dataset: the frame behind the header; fewer than asked only at its end."""

    has_body: ClassVar[bool] = True

    offset: Annotated[int, _Size]


# ── events ──────────────────────────────────────────────────────────────────────────────────────


class Event(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The header frame of an event: ``[topic, header, payload]``; the payload is one value."""

    publisher: Annotated[str, Meta(max_length=128)]
    epoch: Annotated[str, _Epoch]
    #: counts the events of this topic and epoch, from 1
    sequence: Annotated[int, Meta(ge=0, le=2**53)]
    #: POSIX seconds (UTC) at the publisher
    time: float
    kind: Annotated[str, Meta(max_length=32)] = "state"


class Stamp(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The frame that the broker appends: its epoch, its time, the proved publisher (if proved)."""

    broker: Annotated[str, _Epoch]
    time: float
    by: Annotated[str, Meta(max_length=128)] = ""


class PresenceChange(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The payload of ``presence.<node id>``."""

    node: NodeRecord
    change: Literal["joined", "suspect", "back", "left"]
    #: why it left: ``goodbye``, ``expired``, ``replaced``
    reason: str = ""


#: What a node's ROUTER socket decodes, by socket.
DIRECTORY_REQUESTS = (Ping, GetStatus, Hello, Heartbeat, Goodbye, ListNodes, Mark, ListLast)
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
INGEST_REQUESTS = (Ping, GetStatus, UploadStart, UploadChunk, UploadCommit, UploadAbort)
RETRIEVE_REQUESTS = (Ping, GetStatus, ListDatasets, GetDataset, Fetch)

#: What a caller's DEALER socket decodes.
REPLIES = (
    Pong,
    Done,
    Failure,
    Status,
    Welcome,
    NodeList,
    LastEvents,
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
    Fetched,
)
