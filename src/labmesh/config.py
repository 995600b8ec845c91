"""labmesh.toml: its tables as typed, frozen structs, every default, and errors of one line.

An empty file is a mesh on this machine. Reading is strict: an unknown table or key, a wrong type, a
number out of range is a :class:`~labmesh.errors.ConfigError` that names file, table and key, says
what was expected and found, and the nearest name. Each type carries its limits, its description for
that text, and a ``check`` where a type cannot say it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from keyword import iskeyword
from os import PathLike, fspath
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

from msgspec import Meta, Struct, ValidationError, convert
from msgspec.structs import asdict, fields

from labmesh.errors import ConfigError, ProtocolError
from labmesh.protocol.addresses import check_host, parse_bind, parse_connect
from labmesh.protocol.ids import check_id, did_you_mean, shown

S = TypeVar("S", bound=Struct)

#: The file that commands read when none is named.
CONFIG_NAME = "labmesh.toml"


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
_Name = Meta(description='a name such as "labmesh"', extra={"check": check_id})
_RelayId = Meta(description='an id such as "Inst-0"', extra={"check": check_id})
_Driver = Meta(description='text such as "module:Class"', extra={"check": _check_driver})
_Folder = Meta(
    pattern=r"^[^\x00-\x1f]+\Z",
    description="a folder (between double quotes a backslash is written twice)",
)
_Mode = Meta(
    description='"auto", "password" or "open"',
    extra={"refused": {"keys": 'mode "keys" is not available yet in this version'}},
)
_Switch = Meta(description="true or false")
_Arguments = Meta(description="a list of arguments such as [1, 2]")
_Methods = Meta(description='a list of names of methods such as ["measure", "get_*"]')
_Pattern = Annotated[str, Meta(min_length=1)]
_Keywords = Meta(description='a table of arguments such as { port = "COM3" }')


class BrokerTable(Struct, frozen=True, kw_only=True):
    """``[broker]``: the node that knows the others."""

    rpc_bind: Annotated[str, _Bind] = "tcp://*:5750"
    xsub_bind: Annotated[str, _Bind] = "tcp://*:5751"
    xpub_bind: Annotated[str, _Bind] = "tcp://*:5752"
    ttl_seconds: Annotated[float, _Seconds] = 30.0
    #: replaces ``BROKER`` in the other tables
    address: Annotated[str, _Host] = "127.0.0.1"


class RelayTable(Struct, frozen=True, kw_only=True):
    """``[relay]``: what holds for every relay, and for uploads from it."""

    default_rpc_bind: Annotated[str, _Bind] = "tcp://*:5850"
    state_interval: Annotated[float, _Seconds] = 1.0
    broker_rpc: Annotated[str, _Connect] = "tcp://BROKER:5750"
    broker_xsub: Annotated[str, _Connect] = "tcp://BROKER:5751"
    heartbeat_seconds: Annotated[float, _Heartbeat] = 5.0
    upload_timeout: Annotated[float, _Seconds] = 10.0
    upload_retries: Annotated[int, _Retries] = 5
    upload_chunk: Annotated[int, _Chunk] = 1_000_000
    default_address: Annotated[str, _Host] = "127.0.0.1"


class BankTable(Struct, frozen=True, kw_only=True):
    """``[bank]``: where datasets come in, go out and are kept."""

    ingest_bind: Annotated[str, _Bind] = "tcp://*:5761"
    retrieve_bind: Annotated[str, _Bind] = "tcp://*:5762"
    default_data_dir: Annotated[str, _Folder] = "./bank_data"
    broker_rpc: Annotated[str, _Connect] = "tcp://BROKER:5750"
    broker_xsub: Annotated[str, _Connect] = "tcp://BROKER:5751"
    heartbeat_seconds: Annotated[float, _Heartbeat] = 5.0
    default_address: Annotated[str, _Host] = "127.0.0.1"


class ClientTable(Struct, frozen=True, kw_only=True):
    """``[client]``: scripts, notebooks and commands."""

    broker_rpc: Annotated[str, _Connect] = "tcp://BROKER:5750"
    broker_xpub: Annotated[str, _Connect] = "tcp://BROKER:5752"
    default_address: Annotated[str, _Host] = "127.0.0.1"
    #: seconds that a call without a timeout of its own may last
    call_limit: Annotated[float, _Seconds] = 600.0


class SecurityTable(Struct, frozen=True, kw_only=True):
    """``[security]``: who may connect. The password itself is never in a file."""

    mode: Annotated[Literal["auto", "password", "open"], _Mode] = "auto"
    #: networks of other names share nothing, even with the same password
    network: Annotated[str, _Name] = "labmesh"
    insecure: Annotated[bool, _Switch] = False


class RelayEntry(Struct, frozen=True, kw_only=True):
    """One ``[[relays]]``: an instrument that ``labmesh up`` starts."""

    id: Annotated[str, _RelayId]
    driver: Annotated[str, _Driver]
    args: Annotated[list[Any], _Arguments] = []
    kwargs: Annotated[dict[str, Any], _Keywords] = {}
    #: seconds between states; None: ``[relay] state_interval``
    poll: Annotated[float, _Seconds] | None = None
    bind: Annotated[str, _Bind] = "tcp://*:*"
    #: methods that change nothing, by name or pattern
    read_only: Annotated[list[_Pattern], _Methods] = []
    #: nobody may write without a lease
    require_lease: Annotated[bool, _Switch] = False


class Config(Struct, frozen=True, kw_only=True):
    """The whole file. ``path`` is None when there is none and all is default."""

    broker: BrokerTable = BrokerTable()
    relay: RelayTable = RelayTable()
    bank: BankTable = BankTable()
    client: ClientTable = ClientTable()
    security: SecurityTable = SecurityTable()
    relays: tuple[RelayEntry, ...] = ()
    path: Path | None = None

    def state_interval_s(self, entry: RelayEntry) -> float:
        """Seconds between the states of this relay: its own ``poll``, else the table's."""
        return self.relay.state_interval if entry.poll is None else entry.poll


_TABLES: dict[str, type[Struct]] = {
    "broker": BrokerTable,
    "relay": RelayTable,
    "bank": BankTable,
    "client": ClientTable,
    "security": SecurityTable,
}
_HEADINGS: dict[str, type[Struct]] = {
    **{f"[{name}]": kind for name, kind in _TABLES.items()},
    "[[relays]]": RelayEntry,
}


def load_config(path: str | PathLike[str] | None = None) -> Config:
    """Read and check a file; None: the defaults, without a file.

    :raises ConfigError: one line; nothing of the file is used.
    """
    if path is None:
        return Config()
    document = read_toml(path)
    place = _Place(_printable(path))
    tables: dict[str, Any] = {}
    for name, table in document.items():
        if name in _TABLES:
            tables[name] = _table(replace(place, table=f"[{name}]"), _TABLES[name], table)
        elif name == "relays":
            tables[name] = _entries(replace(place, table="[[relays]]"), table)
        else:
            raise _unknown_table(place, name, table)
    return Config(**tables, path=Path(path))


def from_options(kind: type[S], options: Mapping[str, Any], base: S | None = None) -> S:
    """One table whose keys come from a command's options (None: not given), the others of ``base``.

    :raises ConfigError: as for a file.
    """
    heading = next(name for name, each in _HEADINGS.items() if each is kind)
    known = {} if base is None else asdict(base)
    merged = {**known, **{key: each for key, each in options.items() if each is not None}}
    given = {key: each for key, each in merged.items() if each is not None}
    table: S = _table(_Place("options", table=heading), kind, given)
    return table


def find_config() -> Path | None:
    """The ``labmesh.toml`` of the current folder; None when there is none."""
    path = Path(CONFIG_NAME).absolute()
    return path if path.is_file() else None


def example_config() -> str:
    """The commented file that ``labmesh init`` writes: each key with its default, one relay."""
    return files("labmesh").joinpath("example.toml").read_text(encoding="utf-8")


def read_toml(path: str | PathLike[str]) -> dict[str, Any]:
    """The tables of a TOML file as plain dicts: not checked, nothing added.

    UTF-8, with or without a byte order mark; line ends of Unix and of Windows.

    :raises ConfigError: one line: no such file, not readable, not UTF-8, not TOML.
    """
    place = _Place(_printable(path))
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError as exc:
        raise place.error(
            f"no such file (the current folder is {_printable(Path.cwd())}); "
            "'labmesh init' writes one"
        ) from exc
    except UnicodeDecodeError as exc:
        raise place.error(
            f"byte {exc.start + 1} is not UTF-8; save the file with that encoding"
        ) from exc
    except (OSError, ValueError) as exc:  # ValueError: a path with a NUL in it
        raise place.error(f"cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc
    try:
        return tomllib.loads(text)
    except RecursionError as exc:
        raise place.error("not valid TOML: nested too deeply") from exc
    except ValueError as exc:  # TOMLDecodeError, and numbers of more digits than Python reads
        raise place.error(f"not valid TOML: {exc}{_backslash_advice(text, str(exc))}") from exc


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in which file; it words the errors about that place."""

    file: str
    table: str = ""
    entry: str = ""
    key: str = ""

    def error(self, text: str) -> ConfigError:
        inside = " ".join(filter(None, (self.table, self.entry, self.key)))
        place = f"{self.file}: {inside}" if inside else self.file
        return ConfigError(f"{place}: {text}", file=self.file, table=self.table, key=self.key)


def _table(place: _Place, kind: type[Struct], table: object) -> Any:
    if not isinstance(table, dict):
        raise place.error(
            f"expected one table under the heading {place.table}, found {_found(table)}"
        )
    rules = _rules(kind)
    values = {}
    for key, found in table.items():
        if key not in rules:
            raise _unknown_key(replace(place, key=_key(key)), key, list(rules))
        values[key] = _value(replace(place, key=key), rules[key], found)
    for key in (each.name for each in fields(kind) if each.required):
        if key not in values:
            raise replace(place, key=key).error(
                f"missing; expected {_meta(rules[key]).description}"
            )
    return kind(**values)


def _entries(place: _Place, entries: object) -> tuple[RelayEntry, ...]:
    if not isinstance(entries, list):
        raise place.error(
            f"expected entries under the heading [[relays]] (two brackets), found {_found(entries)}"
        )
    first: dict[str, int] = {}
    relays = []
    for number, table in enumerate(entries, 1):
        name = table.get("id") if isinstance(table, dict) else None
        label = f"entry {number}" + (f" ({shown(name)})" if isinstance(name, str) else "")
        relay: RelayEntry = _table(replace(place, entry=label), RelayEntry, table)
        if relay.id in first:
            raise replace(place, entry=label, key="id").error(
                f"entry {first[relay.id]} has the same id; expected an id of its own for each relay"
            )
        first[relay.id] = number
        relays.append(relay)
    return tuple(relays)


def _value(place: _Place, rule: Any, found: object) -> Any:
    meta = _meta(rule)
    try:
        value = convert(found, rule)
    except ValidationError as exc:
        wrong = f"expected {meta.description}, found {_found(found)}"
        raise place.error("; ".join(filter(None, (wrong, _word_advice(rule, found))))) from exc
    check = (meta.extra or {}).get("check")
    if check:
        try:
            check(value)
        except ProtocolError as exc:
            raise place.error(str(exc)) from exc
    return value


def _word_advice(rule: Any, found: object) -> str:
    """For a key that takes one of a few words (its type is a Literal): the nearest one."""
    if not isinstance(found, str):
        return ""
    refused: dict[str, str] = (_meta(rule).extra or {}).get("refused", {})
    words = [each for each in get_args(rule.__origin__) if isinstance(each, str)]
    return refused.get(found) or did_you_mean(found, words)


def _rules(kind: type[Struct]) -> dict[str, Any]:
    """Each key with its annotated type; TOML has no null, so ``| None`` is a default only."""
    hints = get_type_hints(kind, include_extras=True)
    return {
        key: hint if hasattr(hint, "__metadata__") else get_args(hint)[0]
        for key, hint in hints.items()
    }


def _meta(rule: Any) -> Meta:
    return next(each for each in rule.__metadata__ if isinstance(each, Meta))


def _unknown_table(place: _Place, name: str, table: object) -> ConfigError:
    if not isinstance(table, (dict, list)):
        homes = _homes(name) or "some table"
        return replace(place, key=_key(name)).error(
            f"this key stands above the first table; expected it in {homes}"
        )
    known = [*_TABLES, "relays"]
    advice = did_you_mean(name, known) or f"the tables are {', '.join(_HEADINGS)}"
    return replace(place, table=f"[{_key(name)}]").error(f"unknown table; {advice}")


def _unknown_key(place: _Place, key: str, known: list[str]) -> ConfigError:
    if place.table == "[security]" and "password" in key.lower():
        return place.error(
            "unknown key; no file has the password: set the variable LMH_NETWORK_PASSWORD"
        )
    homes = _homes(key)
    advice = [f"it belongs in {homes}" if homes else "", did_you_mean(key, known)]
    if not any(advice):
        advice = [f"the keys here are {', '.join(known)}"]
    return place.error("; ".join(filter(None, ["unknown key", *advice])))


def _homes(key: str) -> str:
    """The headings of the tables that have this key."""
    return " or ".join(name for name, kind in _HEADINGS.items() if key in kind.__struct_fields__)


def _found(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return f"the text {shown(value)}"
        case int() if value.bit_length() > 64:
            return "a whole number of more than 64 bits"
        case int() | float():
            return f"the number {value}"
        case list():
            return "a list"
        case dict():
            return "a table"
    return f"a {type(value).__name__}"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name) else shown(name)


def _printable(path: str | PathLike[str]) -> str:
    text = fspath(path)
    return text if text.isprintable() else ascii(text)


def _backslash_advice(text: str, error: str) -> str:
    """Folders of Windows between double quotes are the usual reason for a bad escape."""
    number = re.search(r"at line (\d+)", error)
    lines = text.splitlines()[int(number[1]) - 1 :][:1] if number else []
    if any("\\" in line for line in lines):
        return "; between double quotes write a backslash twice, or use single quotes"
    return ""
