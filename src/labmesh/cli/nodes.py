"""Commands that run one node: ``broker``, ``bank``, ``relay``; and ``init``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from msgspec.structs import replace

from labmesh.cli import assembly
from labmesh.cli.options import BrokerOptions, MeshOptions, Options
from labmesh.cli.outcomes import DONE
from labmesh.cli.running import connected, hold, run
from labmesh.cli.started import announce, bank_facts, broker_facts, option_for, relay_facts
from labmesh.cli.values import keyword_values, positional_values
from labmesh.config import (
    CONFIG_NAME,
    BankTable,
    BrokerTable,
    Config,
    RelayEntry,
    RelayTable,
    example_config,
    from_options,
)
from labmesh.errors import ConfigError, Conflict, LinkLost
from labmesh.protocol.addresses import Address, parse_connect

__all__ = ["bank", "broker", "init", "relay"]

_OPTIONS, _MESH_OPTIONS, _BROKER_OPTIONS = Options(), MeshOptions(), BrokerOptions()


def init(
    path: Annotated[Path, Parameter(help="The file, or the folder that gets it.")] = Path(
        CONFIG_NAME
    ),
    /,
    *,
    force: Annotated[
        bool, Parameter(negative="", show_default=False, help="Write over a file that is there.")
    ] = False,
    options: Options = _OPTIONS,
) -> int:
    """Write a commented labmesh.toml: every key with its default, and one simulated instrument.

    For example:

        labmesh init
        labmesh init lab/labmesh.toml --force
    """
    file = path / CONFIG_NAME if path.is_dir() else path
    try:
        with file.open("w" if force else "x", encoding="utf-8") as stream:
            stream.write(example_config())
    except FileExistsError as exc:
        raise Conflict(f"{file} exists; give another name, or --force to write over it") from exc
    options.out.line(str(file))
    options.out.say("Edit it, then: labmesh up" + ("" if path == Path(CONFIG_NAME) else f" {file}"))
    if options.json:
        options.out.record({"path": str(file)})
    return DONE


def broker(
    *,
    rpc_bind: Annotated[str | None, Parameter(help="Where requests come in.")] = None,
    xsub_bind: Annotated[str | None, Parameter(help="Where relays and banks publish.")] = None,
    xpub_bind: Annotated[str | None, Parameter(help="Where clients subscribe.")] = None,
    ttl_seconds: Annotated[
        float | None, Parameter(help="A node that is silent for so long is taken off the list.")
    ] = None,
    spare: Annotated[
        bool,
        Parameter(
            negative="",
            show_default=False,
            help="Be the spare that [broker] spare names: its ports are as far from those of "
            "[broker] as that of its requests.",
        ),
    ] = False,
    options: MeshOptions = _MESH_OPTIONS,
) -> int:
    """Run the broker, until Ctrl-C. Each option stands for the key of the same name in [broker].

    For example:

        labmesh broker
        labmesh broker --rpc-bind 'tcp://*:6750' --ttl-seconds 10
        labmesh broker --spare
    """
    given = {
        "rpc_bind": rpc_bind,
        "xsub_bind": xsub_bind,
        "xpub_bind": xpub_bind,
        "ttl_seconds": ttl_seconds,
    }
    config = options.settings
    config = replace(config, broker=from_options(BrokerTable, given, config.broker))
    if spare:
        config = assembly.as_spare(config)
    node = assembly.make_broker(config, options.security)

    def ready() -> None:
        place = "" if spare else option_for(config, node)
        announce(
            options.out,
            {"broker": broker_facts(node, config)},
            [f"labmesh bank{place}", f"labmesh relay module:Class{place}", f"labmesh ls{place}"],
        )

    return hold([lambda: node], ready, options.out, config)


def bank(
    *,
    id_: Annotated[str, Parameter(name="--id", help="Its id on the mesh.")] = "bank-0",
    ingest_bind: Annotated[str | None, Parameter(help="Where uploads come in.")] = None,
    retrieve_bind: Annotated[str | None, Parameter(help="Where downloads go out.")] = None,
    data_dir: Annotated[
        str | None, Parameter(help="Folder of the datasets ([bank] default_data_dir).")
    ] = None,
    quota: Annotated[
        str | None, Parameter(help='For all datasets together, such as "500 GB".')
    ] = None,
    trash_days: Annotated[
        float | None, Parameter(help="Days for which a deleted dataset can be restored.")
    ] = None,
    scrub_days: Annotated[
        float | None, Parameter(help="Days in which every dataset is verified; 0: never.")
    ] = None,
    upload_idle_hours: Annotated[
        float | None, Parameter(help="Hours for which an upload that broke off can go on.")
    ] = None,
    heartbeat_seconds: Annotated[
        float | None, Parameter(help="Seconds between two signs of life to the broker.")
    ] = None,
    address: Annotated[
        str | None, Parameter(help="Where others find it ([bank] default_address).")
    ] = None,
    options: BrokerOptions = _BROKER_OPTIONS,
) -> int:
    """Run a bank, which keeps datasets, until Ctrl-C. The options stand for the keys of [bank].

    For example:

        labmesh bank
        labmesh bank --id bank-1 --data-dir /data --ingest-bind 'tcp://*:6761'
    """
    given = {
        "ingest_bind": ingest_bind,
        "retrieve_bind": retrieve_bind,
        "default_data_dir": data_dir,
        "quota": quota,
        "trash_days": trash_days,
        "scrub_days": scrub_days,
        "upload_idle_hours": upload_idle_hours,
        "heartbeat_seconds": heartbeat_seconds,
        "default_address": address,
    }
    config = _for_nodes(options)
    config = replace(config, bank=from_options(BankTable, given, config.bank))
    node = assembly.make_bank(config, options.security, bank_id=id_)

    def ready() -> None:
        place = "" if options.broker is None else f" --broker {options.broker}"
        announce(
            options.out,
            {"banks": [bank_facts(node, config)]},
            [f"labmesh data put FILE{place}", f"labmesh data ls{place}"],
        )

    return hold([lambda: node], ready, options.out, config)


def relay(
    driver: Annotated[
        str | None,
        Parameter(help="module:Class of the driver. Without it: the [[relays]] entry of --id."),
    ] = None,
    /,
    *,
    id_: Annotated[
        str | None, Parameter(name="--id", help="Its id on the mesh. Without it: the class's name.")
    ] = None,
    arg: Annotated[
        list[str] | None,
        Parameter(
            negative="",
            allow_leading_hyphen=True,
            help="An argument for the class, JSON or else text; again for each further one.",
        ),
    ] = None,
    kwarg: Annotated[
        list[str] | None,
        Parameter(
            negative="",
            help="A keyword argument for the class: name=value, the value JSON or else text; "
            "again for each further one.",
        ),
    ] = None,
    poll: Annotated[
        float | None, Parameter(help="Seconds between two states ([relay] state_interval).")
    ] = None,
    bind: Annotated[
        str | None,
        Parameter(help="Where calls come in; port * is any free one ([relay] default_rpc_bind)."),
    ] = None,
    heartbeat_seconds: Annotated[
        float | None, Parameter(help="Seconds between two signs of life to the broker.")
    ] = None,
    address: Annotated[
        str | None, Parameter(help="Where others find it ([relay] default_address).")
    ] = None,
    spool: Annotated[
        str | None,
        Parameter(help="Keep uploads in this folder until a bank has them ([relay] spool_dir)."),
    ] = None,
    options: BrokerOptions = _BROKER_OPTIONS,
) -> int:
    """Run a relay, which serves one instrument, until Ctrl-C.

    The driver is any Python class: its public methods can be called, its poll() is the state.

    For example:

        labmesh relay my_lab:PowerSupply --id psu-1 --kwarg port=COM3
        labmesh relay my_lab:Thermometer --poll 0.5 --bind 'tcp://*:*'
        labmesh relay my_lab:Camera --spool spool
        labmesh relay --id Inst-0 --config labmesh.toml
    """
    config = _for_nodes(options)
    table = {
        "heartbeat_seconds": heartbeat_seconds,
        "default_address": address,
        "spool_dir": spool,
    }
    config = replace(config, relay=from_options(RelayTable, table, config.relay))
    given = {
        "args": None if arg is None else positional_values(arg),
        "kwargs": None if kwarg is None else keyword_values(kwarg),
        "poll": poll,
        "bind": bind,
    }
    entry = from_options(RelayEntry, given, _entry(config, driver, id_))
    node = assembly.make_relay(config, entry, assembly.load_entry(entry), options.security)

    def ready() -> None:
        place = "" if options.broker is None else f" --broker {options.broker}"
        announce(
            options.out,
            {"relays": [relay_facts(node, entry)]},
            [f"labmesh show {entry.id}{place}", f"labmesh watch {entry.id}{place}"],
        )

    return hold([lambda: node], ready, options.out, config)


def _for_nodes(options: BrokerOptions) -> Config:
    """The configuration, with the broker that ``--broker`` or ``LMH_BROKER`` names."""
    config, candidate = options.settings, options.candidate
    config = replace(config, broker=replace(config.broker, spare=candidate.spare))
    if candidate.xpub is not None:  # the file itself named it
        return config
    xsub = assembly.usual_events(config, candidate.rpc)
    return assembly.at_broker(config, candidate.rpc, xsub or run(_ask_events(options)))


async def _ask_events(options: BrokerOptions) -> str:
    """Ask a broker on an unusual port for its port for publishers."""
    try:
        async with connected(options) as client:
            status = await client.broker_status()
    except LinkLost as exc:
        raise LinkLost(
            f"{exc}. Only a broker on the usual port can be started later: start this one first, "
            "or write [relay] and [bank] broker_rpc and broker_xsub into a file"
        ) from exc
    host = parse_connect(options.candidate.rpc).host
    return str(Address(host, int(status.facts["xsub_port"])))


def _entry(config: Config, driver: str | None, relay_id: str | None) -> RelayEntry:
    if driver is not None:
        class_name = driver.rpartition(":")[2].rpartition(".")[2]
        given = {
            "id": class_name if relay_id is None else relay_id,
            "driver": driver,
            "bind": config.relay.default_rpc_bind,
        }
        return from_options(RelayEntry, given)
    if relay_id is not None:
        return assembly.relay_entry(config, relay_id)
    raise ConfigError(
        "name the driver (labmesh relay module:Class), or the --id of a [[relays]] entry of the "
        "configuration file"
    )
