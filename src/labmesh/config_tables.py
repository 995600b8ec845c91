"""The tables of labmesh.toml as typed, frozen structs, with their defaults.

Each type carries its limits, its description for error texts, and a ``check`` where a type cannot
say it.
"""

from __future__ import annotations

from keyword import iskeyword
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from labmesh.errors import ProtocolError
from labmesh.protocol.addresses import check_host, parse_bind, parse_connect
from labmesh.protocol.ids import check_id, shown
from labmesh.protocol.sizes import parse_size
from labmesh.protocol.spare import check_spare

__all__ = [
    "BankTable",
    "BrokerTable",
    "ClientTable",
    "RelayEntry",
    "RelayTable",
    "RetentionEntry",
    "SecurityTable",
]


def _check_connect(text: str) -> None:
    parse_connect(text, broker_address="127.0.0.1")


def _check_driver(text: str) -> None:
    module, colon, attribute = text.partition(":")
    names = [*module.split("."), *attribute.split(".")]
    if not colon or not all(name.isidentifier() and not iskeyword(name) for name in names):
        raise ProtocolError(
            f"driver {shown(text)} is not module:Class; write it like my_package.psu:PowerSupply"
        )
    if module.endswith(".py"):
        raise ProtocolError(
            f"driver {shown(text)} names a file; write the module, without .py: "
            f"{module.removesuffix('.py')}:{attribute}"
        )


# A year-long timeout is a typing error, and a timer of 0 s would keep a processor busy.
_Seconds = Meta(ge=0.001, le=604_800, description="seconds, from 0.001 to 604800 (a week)")
# The wire format takes no longer heartbeat.
_Heartbeat = Meta(ge=0.001, le=3600, description="seconds, from 0.001 to 3600 (an hour)")
_Retries = Meta(ge=0, le=1000, description="a whole number from 0 to 1000")
# Each chunk costs a message and an answer: below 64 KiB they outweigh its bytes. A bank takes no
# message over 8 MiB. Within that, the bank grants the size that is used in the end.
_Chunk = Meta(ge=65_536, le=8 * 2**20, description="bytes, a whole number from 65536 to 8388608")
_Bind = Meta(description='an address such as "tcp://*:5750"', extra={"check": parse_bind})
_Connect = Meta(
    description='an address such as "tcp://BROKER:5750"', extra={"check": _check_connect}
)
_Host = Meta(description='a host such as "192.168.1.10"', extra={"check": check_host})
_Spare = Meta(
    description='a host such as "lab-pc2" or "lab-pc2:5750"', extra={"check": check_spare}
)
_Name = Meta(description='a name such as "labmesh"', extra={"check": check_id})
_RelayId = Meta(description='an id such as "Inst-0"', extra={"check": check_id})
_Driver = Meta(description='text such as "module:Class"', extra={"check": _check_driver})
_Folder = Meta(
    pattern=r"^[^\x00-\x1f]+\Z",
    description="a folder (between double quotes a backslash is written twice)",
)
_AuditFolder = Meta(pattern=r"^[^\x00-\x1f]+\Z", description='a folder, or "off"')
_Size = Meta(description='an amount of storage such as "10 GB"', extra={"check": parse_size})
_Days = Meta(ge=0, le=36_500, description="days, from 0 to 36500")
_Hours = Meta(ge=0.01, le=87_600, description="hours, from 0.01 to 87600")
_Count = Meta(ge=1, le=10**9, description="a whole number from 1 on")
_NamePattern = Meta(
    min_length=1, max_length=256, description='a name or a pattern such as "Inst-*"'
)
_Mode = Meta(description='"auto", "keys", "password" or "open"')
_PasswordRole = Meta(description='"viewer", "operator" or "admin"')
_Publish = Meta(description='"poll" (each state) or "change" (each that differs)')
_LogLevel = Meta(description='"debug", "info", "warning", "error" or "off"')
_Switch = Meta(description="true or false")
_Arguments = Meta(description="a list of arguments such as [1, 2]")
_Methods = Meta(description='a list of names of methods such as ["measure", "get_*"]')
_Pattern = Annotated[str, Meta(min_length=1)]
_Keywords = Meta(description='a table of arguments such as { port = "COM3" }')


#: What of its log a node publishes.
LogLevel = Literal["debug", "info", "warning", "error", "off"]


class BrokerTable(Struct, frozen=True, kw_only=True):
    """``[broker]``: the node that knows the others."""

    rpc_bind: Annotated[str, _Bind] = "tcp://*:5750"
    xsub_bind: Annotated[str, _Bind] = "tcp://*:5751"
    xpub_bind: Annotated[str, _Bind] = "tcp://*:5752"
    ttl_seconds: Annotated[float, _Seconds] = 30.0
    #: replaces ``BROKER`` in the other tables
    address: Annotated[str, _Host] = "127.0.0.1"
    #: the spare broker, with the port of its requests where that is another one; empty: none
    spare: Annotated[str, _Spare] = ""


class RelayTable(Struct, frozen=True, kw_only=True):
    """``[relay]``: what holds for every relay, and for uploads from it."""

    default_rpc_bind: Annotated[str, _Bind] = "tcp://*:5850"
    state_interval: Annotated[float, _Seconds] = 1.0
    broker_rpc: Annotated[str, _Connect] = "tcp://BROKER:5750"
    broker_xsub: Annotated[str, _Connect] = "tcp://BROKER:5751"
    heartbeat_seconds: Annotated[float, _Heartbeat] = 5.0
    #: which states are published; with "change", one every ``keep_alive`` seconds in any case
    publish: Annotated[Literal["poll", "change"], _Publish] = "poll"
    keep_alive: Annotated[float, _Seconds] = 10.0
    #: what is logged from this level on is published
    log_level: Annotated[LogLevel, _LogLevel] = "info"
    upload_timeout: Annotated[float, _Seconds] = 10.0
    upload_retries: Annotated[int, _Retries] = 5
    upload_chunk: Annotated[int, _Chunk] = 1_000_000
    #: datasets wait for a bank in this folder, each relay's in a folder of its own in it
    spool_dir: Annotated[str, _Folder] | None = None
    #: what such a folder of a relay may hold
    spool_limit: Annotated[str, _Size] = "10 GB"
    default_address: Annotated[str, _Host] = "127.0.0.1"


class RetentionEntry(Struct, frozen=True, kw_only=True):
    """One ``[[bank.retention]]``: which datasets go into the trash by themselves; the first entry
    that matches a dataset counts. What is tagged ``keep`` stays.
    """

    #: patterns with ``*`` and ``?``
    relay: Annotated[str, _NamePattern] = "*"
    name: Annotated[str, _NamePattern] = "*"
    kind: Annotated[str, _NamePattern] = "*"
    #: one of the tags has to match; None: tags do not matter
    tag: Annotated[str, _NamePattern] | None = None
    #: it stays while it is younger, or among the newest so many; neither: it stays
    keep_days: Annotated[float, _Days] | None = None
    keep_last: Annotated[int, _Count] | None = None


_Retention = Meta(
    description="entries under the heading [[bank.retention]]",
    extra={"entries": RetentionEntry},
)


class BankTable(Struct, frozen=True, kw_only=True):
    """``[bank]``: where datasets come in, go out and are kept."""

    ingest_bind: Annotated[str, _Bind] = "tcp://*:5761"
    retrieve_bind: Annotated[str, _Bind] = "tcp://*:5762"
    default_data_dir: Annotated[str, _Folder] = "./bank_data"
    broker_rpc: Annotated[str, _Connect] = "tcp://BROKER:5750"
    broker_xsub: Annotated[str, _Connect] = "tcp://BROKER:5751"
    heartbeat_seconds: Annotated[float, _Heartbeat] = 5.0
    default_address: Annotated[str, _Host] = "127.0.0.1"
    #: what is logged from this level on is published
    log_level: Annotated[LogLevel, _LogLevel] = "info"
    #: for all datasets together; None: as much as the disk has
    quota: Annotated[str, _Size] | None = None
    #: a deleted dataset can be restored for so long
    trash_days: Annotated[float, _Days] = 30.0
    #: every dataset is read and verified once in so many days; 0: never
    scrub_days: Annotated[float, _Days] = 30.0
    #: an upload that broke off can be continued for so long
    upload_idle_hours: Annotated[float, _Hours] = 24.0
    retention: Annotated[tuple[RetentionEntry, ...], _Retention] = ()


class ClientTable(Struct, frozen=True, kw_only=True):
    """``[client]``: scripts, notebooks and commands."""

    broker_rpc: Annotated[str, _Connect] = "tcp://BROKER:5750"
    broker_xpub: Annotated[str, _Connect] = "tcp://BROKER:5752"
    default_address: Annotated[str, _Host] = "127.0.0.1"
    #: seconds that a call without a timeout of its own may last
    call_limit: Annotated[float, _Seconds] = 600.0


class SecurityTable(Struct, frozen=True, kw_only=True):
    """``[security]``: who may connect. The password itself is never in a file."""

    mode: Annotated[Literal["auto", "keys", "password", "open"], _Mode] = "auto"
    #: networks of other names share nothing, even with the same password
    network: Annotated[str, _Name] = "labmesh"
    insecure: Annotated[bool, _Switch] = False
    #: the folder of this network's keys; None: in the user's folder of configurations
    keys_dir: Annotated[str, _Folder] | None = None
    #: what who knows the password may do at the nodes of this file
    password_role: Annotated[Literal["viewer", "operator", "admin"], _PasswordRole] = "operator"
    #: the folder of the journals of who did what; None: where nodes have keys, in the user's folder
    #: of states; "off": no journal
    audit_dir: Annotated[str, _AuditFolder] | None = None


class RelayEntry(Struct, frozen=True, kw_only=True):
    """One ``[[relays]]``: an instrument that ``labmesh up`` starts."""

    id: Annotated[str, _RelayId]
    driver: Annotated[str, _Driver]
    args: Annotated[list[Any], _Arguments] = []
    kwargs: Annotated[dict[str, Any], _Keywords] = {}
    #: seconds between states; None: ``[relay] state_interval``
    poll: Annotated[float, _Seconds] | None = None
    #: which of them are published; None: ``[relay] publish``
    publish: Annotated[Literal["poll", "change"], _Publish] | None = None
    bind: Annotated[str, _Bind] = "tcp://*:*"
    #: methods that change nothing, by name or pattern
    read_only: Annotated[list[_Pattern], _Methods] = []
    #: nobody may write without a lease
    require_lease: Annotated[bool, _Switch] = False
