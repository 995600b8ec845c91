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
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from msgspec import Meta, Struct, ValidationError, convert
from msgspec.structs import asdict, fields

from labmesh.config_tables import (
    BankTable,
    BrokerTable,
    ClientTable,
    RelayEntry,
    RelayTable,
    RetentionEntry,
    SecurityTable,
)
from labmesh.errors import ConfigError, ProtocolError
from labmesh.protocol.ids import did_you_mean, shown

__all__ = [
    "CONFIG_NAME",
    "BankTable",
    "BrokerTable",
    "ClientTable",
    "Config",
    "RelayEntry",
    "RelayTable",
    "RetentionEntry",
    "SecurityTable",
    "example_config",
    "find_config",
    "from_options",
    "load_config",
    "read_toml",
]

S = TypeVar("S", bound=Struct)

#: The file that commands read when none is named.
CONFIG_NAME = "labmesh.toml"


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


def _inner_entries(place: _Place, meta: Meta, found: object) -> tuple[Any, ...]:
    """The entries of a list inside a table, such as ``[[bank.retention]]``."""
    kind: type[Struct] = (meta.extra or {})["entries"]
    if not isinstance(found, list | tuple):
        raise place.error(f"expected {meta.description}, found {_found(found)}")
    heading = f"[[{place.table.strip('[]')}.{place.key}]]"
    return tuple(
        each
        if isinstance(each, kind)  # of a table that was read before
        else _table(replace(place, table=heading, key="", entry=f"entry {number}"), kind, each)
        for number, each in enumerate(found, 1)
    )


def _value(place: _Place, rule: Any, found: object) -> Any:
    meta = _meta(rule)
    if (meta.extra or {}).get("entries"):
        return _inner_entries(place, meta, found)
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
    words = [each for each in get_args(rule.__origin__) if isinstance(each, str)]
    return did_you_mean(found, words)


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
