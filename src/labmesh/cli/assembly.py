"""Nodes as a configuration file describes them. Each key does here what its name says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from labmesh.config import Config, RelayEntry, RetentionEntry
from labmesh.discovery import DEFAULT_PORT
from labmesh.errors import ConfigError
from labmesh.protocol.addresses import Address, is_loopback, parse_bind, parse_connect
from labmesh.protocol.ids import did_you_mean
from labmesh.protocol.retention import Rule
from labmesh.protocol.sizes import parse_size
from labmesh.protocol.spare import shifted, spare_rpc
from labmesh.transport.keys import Security

# Commands that only ask a question come by here as well: nodes are loaded where one is made.
if TYPE_CHECKING:
    from labmesh.broker import DirectoryBroker
    from labmesh.databank import DataBank
    from labmesh.relay import RelayAgent
    from labmesh.transfer import UploadSettings

__all__ = [
    "as_spare",
    "at_broker",
    "beside",
    "binds",
    "free_ports",
    "keys_of_port",
    "load_entry",
    "make_bank",
    "make_broker",
    "make_relay",
    "mismatches",
    "relay_entry",
    "simulated",
    "spool_folder",
    "upload_settings",
    "usual_events",
]

_DAY_S = 86_400.0
#: What ``labmesh up`` runs where no file says what.
_SIMULATED = (
    ("Inst-0", "PowerSupply"),
    ("Thermo-0", "Thermometer"),
    ("Scope-0", "Oscilloscope"),
)


def make_broker(config: Config, security: Security | None = None) -> DirectoryBroker:
    """The broker of ``[broker]``."""
    from labmesh.broker import DirectoryBroker

    table = config.broker
    return DirectoryBroker(
        table.rpc_bind,
        table.xsub_bind,
        table.xpub_bind,
        ttl_seconds=table.ttl_seconds,
        security=security,
    )


def as_spare(config: Config) -> Config:
    """The same with the ports of the spare broker, and its host as that of the broker.

    :raises ConfigError: the file names no spare.
    """
    table = config.broker
    rpc = str(Address(table.address, parse_bind(table.rpc_bind).port or DEFAULT_PORT))
    spare = spare_rpc(table.spare, rpc)
    if not spare:
        raise ConfigError(
            f"{config.path or 'labmesh.toml'}: [broker] spare names no spare broker; write its "
            'host there, such as spare = "lab-pc2"'
        )
    place = parse_connect(spare)
    by = place.port - parse_connect(rpc).port

    def moved(bind: str) -> str:
        return str(shifted(parse_bind(bind), by))

    broker = replace(
        table,
        rpc_bind=moved(table.rpc_bind),
        xsub_bind=moved(table.xsub_bind),
        xpub_bind=moved(table.xpub_bind),
        address=place.host,
        spare="",
    )
    return replace(config, broker=broker)


def make_bank(
    config: Config, security: Security | None = None, *, bank_id: str = "bank-0"
) -> DataBank:
    """The bank of ``[bank]``."""
    from labmesh.databank import DataBank

    table = config.bank
    return DataBank(
        ingest_bind=table.ingest_bind,
        retrieve_bind=table.retrieve_bind,
        data_dir=table.default_data_dir,
        broker_rpc=table.broker_rpc,
        broker_xsub=table.broker_xsub,
        bank_id=bank_id,
        heartbeat_sec=table.heartbeat_seconds,
        broker_address=config.broker.address,
        local_address=table.default_address,
        quota_bytes=0 if table.quota is None else parse_size(table.quota),
        trash_days=table.trash_days,
        scrub_days=table.scrub_days,
        upload_idle_hours=table.upload_idle_hours,
        retention=[_rule(each) for each in table.retention],
        log_level=_level(table.log_level),
        security=security,
        spare_broker=config.broker.spare,
    )


def _level(level: str) -> str | None:
    return None if level == "off" else level


def _rule(entry: RetentionEntry) -> Rule:
    return Rule(
        relay=entry.relay,
        name=entry.name,
        kind=entry.kind,
        tag=entry.tag or "",
        keep_s=None if entry.keep_days is None else entry.keep_days * _DAY_S,
        keep_last=entry.keep_last,
    )


def make_relay(
    config: Config, entry: RelayEntry, driver: object, security: Security | None = None
) -> RelayAgent:
    """A relay of ``[[relays]]``, for its driver, with what ``[relay]`` says for all of them.

    :raises ConfigError: a name in ``read_only`` is none of the driver's methods.
    """
    from labmesh.relay import RelayAgent

    table = config.relay
    try:
        return RelayAgent(
            entry.id,
            driver,
            broker_rpc=table.broker_rpc,
            rpc_bind=entry.bind,
            state_pub=table.broker_xsub,
            local_address=table.default_address,
            broker_address=config.broker.address,
            state_interval=config.state_interval_s(entry),
            heartbeat_seconds=table.heartbeat_seconds,
            publish=entry.publish or table.publish,
            keep_alive=table.keep_alive,
            log_level=_level(table.log_level),
            upload_timeout=table.upload_timeout,
            upload_retries=table.upload_retries,
            upload_chunk=table.upload_chunk,
            spool_dir=spool_folder(config, entry.id),
            spool_limit=table.spool_limit,
            read_only=entry.read_only,
            require_lease=entry.require_lease,
            security=security,
            spare_broker=config.broker.spare,
        )
    except ConfigError as exc:
        raise ConfigError(f"relay {entry.id}: {exc}", **exc.detail) from exc


def load_entry(entry: RelayEntry) -> object:
    """The driver of an entry, imported and made.

    :raises ConfigError: one line that names the relay.
    """
    from labmesh.instruments.loading import load_driver

    try:
        return load_driver(entry.driver, entry.args, entry.kwargs)
    except ConfigError as exc:
        raise ConfigError(f"relay {entry.id}: {exc}", **exc.detail) from exc


def spool_folder(config: Config, relay_id: str) -> Path | None:
    """Where the datasets of this relay wait for a bank; None: they do not."""
    folder = config.relay.spool_dir
    return None if folder is None else Path(folder) / relay_id


def upload_settings(config: Config) -> UploadSettings:
    """How patient uploads are, by ``[relay]``."""
    from labmesh.transfer import UploadSettings

    table = config.relay
    return UploadSettings(table.upload_timeout, table.upload_retries, table.upload_chunk)


def relay_entry(config: Config, relay_id: str) -> RelayEntry:
    """The ``[[relays]]`` entry with this id.

    :raises ConfigError: the file has none.
    """
    for entry in config.relays:
        if entry.id == relay_id:
            return entry
    known = [entry.id for entry in config.relays]
    near = did_you_mean(relay_id, known)
    file = config.path or "no labmesh.toml is here, so it"
    raise ConfigError(
        f"{file} has no [[relays]] entry with id {relay_id!r}{near and f' ({near})'}; its ids: "
        f"{', '.join(known) or 'none'}. Add one, or name a driver: labmesh relay module:Class",
    )


def simulated(config: Config) -> Config:
    """The same mesh with three simulated instruments."""
    relays = tuple(
        RelayEntry(id=relay_id, driver=f"labmesh.instruments.simulated:{kind}")
        for relay_id, kind in _SIMULATED
    )
    return replace(config, relays=relays)


# ── where the broker is ─────────────────────────────────────────────────────────────────────────


def free_ports(config: Config) -> Config:
    """The same mesh on ports that are free, whatever they are."""

    def anywhere(bind: str) -> str:
        return str(Address(parse_bind(bind).host, 0))

    broker, bank = config.broker, config.bank
    return replace(
        config,
        broker=replace(
            broker,
            rpc_bind=anywhere(broker.rpc_bind),
            xsub_bind=anywhere(broker.xsub_bind),
            xpub_bind=anywhere(broker.xpub_bind),
        ),
        bank=replace(
            bank,
            ingest_bind=anywhere(bank.ingest_bind),
            retrieve_bind=anywhere(bank.retrieve_bind),
        ),
        relay=replace(config.relay, default_rpc_bind=anywhere(config.relay.default_rpc_bind)),
        relays=tuple(replace(each, bind=anywhere(each.bind)) for each in config.relays),
    )


def beside(config: Config, broker: DirectoryBroker) -> Config:
    """The same with the ports that a started broker got, for the nodes beside it.

    The hosts stay: they decide which address a node advertises.
    """
    host = config.broker.address

    def moved(written: str, port: int) -> str:
        return str(Address(parse_connect(written, host).host, port))

    relay, bank = config.relay, config.bank
    spare = spare_rpc(config.broker.spare, str(parse_connect(relay.broker_rpc, host)))
    return replace(
        config,
        broker=replace(config.broker, spare=spare),
        relay=replace(
            relay,
            broker_rpc=moved(relay.broker_rpc, broker.rpc.port),
            broker_xsub=moved(relay.broker_xsub, broker.xsub.port),
        ),
        bank=replace(
            bank,
            broker_rpc=moved(bank.broker_rpc, broker.rpc.port),
            broker_xsub=moved(bank.broker_xsub, broker.xsub.port),
        ),
    )


def at_broker(config: Config, rpc: str, xsub: str) -> Config:
    """The same with another broker for relays and banks."""
    return replace(
        config,
        relay=replace(config.relay, broker_rpc=rpc, broker_xsub=xsub),
        bank=replace(config.bank, broker_rpc=rpc, broker_xsub=xsub),
    )


def usual_events(config: Config, rpc: str) -> str | None:
    """The address for publishers of the broker at ``rpc``; None: only that broker knows it.

    Where requests have the port of the file, events have that of the file, too.
    """
    table, host = config.relay, config.broker.address
    asked = parse_connect(rpc)
    if asked.port != parse_connect(table.broker_rpc, host).port:
        return None
    return str(Address(asked.host, parse_connect(table.broker_xsub, host).port))


def mismatches(config: Config) -> list[str]:
    """Where a file has its nodes look for the broker at a place where it does not listen."""
    broker = config.broker
    binds = {
        "broker_rpc": ("rpc_bind", broker.rpc_bind),
        "broker_xsub": ("xsub_bind", broker.xsub_bind),
        "broker_xpub": ("xpub_bind", broker.xpub_bind),
    }
    tables = {"relay": config.relay, "bank": config.bank, "client": config.client}
    return _too_seldom(config) + [
        _mismatch(f"[{name}] {key}", getattr(table, key), bind_key, bind, broker.address)
        for name, table in tables.items()
        for key, (bind_key, bind) in binds.items()
        if hasattr(table, key) and not _meet(getattr(table, key), bind, broker.address)
    ]


def _too_seldom(config: Config) -> list[str]:
    """Whose heartbeats are so far apart that the broker strikes the node off in between."""
    ttl_s = config.broker.ttl_seconds
    heartbeats = {
        "relay": config.relay.heartbeat_seconds,
        "bank": config.bank.heartbeat_seconds,
    }
    return [
        f"[{name}] heartbeat_seconds = {heartbeat_s:g} is not less than [broker] "
        f"ttl_seconds = {ttl_s:g}: each {name} would leave the list between two heartbeats"
        for name, heartbeat_s in heartbeats.items()
        if heartbeat_s >= ttl_s
    ]


def keys_of_port(config: Config, port: object) -> list[str]:
    """The keys that have a node listen at this port, each with its table."""
    return [key for key, bind in binds(config).items() if port and parse_bind(bind).port == port]


def binds(config: Config) -> dict[str, str]:
    """Where the nodes of a file listen: each key with its table → what it says."""
    broker, bank = config.broker, config.bank
    return {
        "[broker] rpc_bind": broker.rpc_bind,
        "[broker] xsub_bind": broker.xsub_bind,
        "[broker] xpub_bind": broker.xpub_bind,
        "[bank] ingest_bind": bank.ingest_bind,
        "[bank] retrieve_bind": bank.retrieve_bind,
        "[relay] default_rpc_bind": config.relay.default_rpc_bind,
        **{f"[[relays]] {each.id} bind": each.bind for each in config.relays},
    }


def _meet(written: str, bind: str, host: str) -> bool:
    listens, looks = parse_bind(bind), parse_connect(written, host)
    if listens.port == 0:
        return True  # whoever starts the broker tells the others
    if listens.port != looks.port:
        return False
    return listens.is_wildcard or is_loopback(listens.host) == is_loopback(looks.host)


def _mismatch(place: str, written: str, bind_key: str, bind: str, host: str) -> str:
    looks = parse_connect(written, host)
    return (
        f"{place} = {written!r} looks for the broker at {looks}, but [broker] {bind_key} = "
        f"{bind!r} has it listen elsewhere: make host ([broker] address) and port agree"
    )
