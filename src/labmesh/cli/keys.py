"""The commands ``keys`` that look: which keys there are, and whether their files are in order."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from labmesh.access.allowed_keys import BROKER
from labmesh.access.certificates import until_words
from labmesh.access.folder_check import check_folder
from labmesh.access.keyring import KeyFolder
from labmesh.cli.options import MeshOptions
from labmesh.cli.outcomes import DONE, FAILED
from labmesh.cli.output import Output
from labmesh.errors import NotFound
from labmesh.protocol.access import Grant, fingerprint
from labmesh.protocol.ids import did_you_mean
from labmesh.transport.keys import keys_folder, network_name

__all__ = ["check", "facts_of", "folder_of", "list_", "show"]

_LIMITS = ("relays", "deny", "addresses", "until")
_LEAST_DIGITS = 4

_OPTIONS = MeshOptions()


def folder_of(options: MeshOptions) -> KeyFolder:
    """The folder of keys that a command works on."""
    table = options.settings.security
    network = network_name(table.network)
    return KeyFolder(keys_folder(network, table.keys_dir), network)


def facts_of(grant: Grant) -> dict[str, Any]:
    """What the commands tell of a key; limits that it does not have are left out."""
    facts: dict[str, Any] = {
        "name": grant.name,
        "role": grant.role,
        "fingerprint": fingerprint(grant.key),
        "key": grant.key,
    }
    limits = {
        "relays": list(grant.relays),
        "deny": list(grant.methods_deny),
        "addresses": list(grant.addresses),
        "until": None if grant.not_after is None else until_words(grant.not_after),
    }
    return facts | {name: value for name, value in limits.items() if value}


def list_(*, options: MeshOptions = _OPTIONS) -> int:
    """List the keys: this machine's own, those that are admitted, and those that were revoked.

    For example:

        labmesh keys list
    """
    out, folder = options.out, folder_of(options)
    rows = _rows(folder, out)
    if out.json:
        for row in rows:
            out.record(row)
    elif rows:
        out.table(
            ["NAME", "ROLE", "FINGERPRINT", "HERE", "STATE", "LIMITS"],
            [
                [
                    row["name"],
                    row["role"],
                    row["fingerprint"],
                    "secret" if row["own"] else "",
                    row["state"],
                    _limits(row),
                ]
                for row in rows
            ],
        )
    else:
        out.say(f"there are no keys in {folder.path}; 'labmesh keys init' or 'join' makes some")
    return DONE


def show(
    name: Annotated[str, Parameter(help="A name, or the beginning of a fingerprint.")],
    /,
    *,
    options: MeshOptions = _OPTIONS,
) -> int:
    """Show all that is known of a key.

    For example:

        labmesh keys show ana
        labmesh keys show 1f3a56bc
    """
    out, folder = options.out, folder_of(options)
    rows = _rows(folder, out)
    meant = [each for each in rows if each["name"] == name or _begins(each["fingerprint"], name)]
    if not meant:
        near = did_you_mean(name, {each["name"] for each in rows})
        raise NotFound(f"no key of {folder.path} is called {name!r}, or begins so; {near}")
    for row in meant:
        if out.json:
            out.record(row)
        for fact, value in row.items():
            out.line(f"{fact:<14} {_in_words(value)}")
    return DONE


def check(*, options: MeshOptions = _OPTIONS) -> int:
    """Look at all files of the folder of keys: rights, halves, names, who is on the list.

    Exit code 1 when something is wrong.

    For example:

        labmesh keys check
    """
    out, folder = options.out, folder_of(options)
    faults = check_folder(folder)
    for each in faults:
        out.line(f"{each.level}: {each.text}")
        if out.json:
            out.record({"level": each.level, "text": each.text})
    wrong = any(each.level == "wrong" for each in faults)
    if not faults:
        out.say(f"nothing is wrong with {folder.path}")
    return FAILED if wrong else DONE


def _rows(folder: KeyFolder, out: Output) -> list[dict[str, Any]]:
    """All keys that are known here, each once."""
    own = {each.grant.key: each for each in folder.identities()}
    allowed = folder.allow_list(strict=False, on_fault=lambda exc: out.trouble(f"wrong: {exc}"))
    brokers = {each.decode() for each in folder.broker_keys()}
    rows = {}
    for key, identity in own.items():
        rows[key] = facts_of(identity.grant) | {"own": True, "state": ""}
    for grant in allowed.grants:
        rows[grant.key] = facts_of(grant) | {"own": grant.key in own, "state": "admitted"}
    for key in brokers:
        broker = Grant(name=BROKER, role="broker", key=key)
        rows[key] = rows.get(key, facts_of(broker) | {"own": False}) | {"state": "trusted"}
    for key, name in folder.revoked_names().items():
        known = rows.get(key, {"name": name, "role": "", "fingerprint": fingerprint(key)})
        rows[key] = known | {"own": key in own, "state": "revoked"}
    return sorted(rows.values(), key=lambda row: (row["state"] == "revoked", row["name"]))


def _limits(row: dict[str, Any]) -> str:
    words = (f"{name} {_in_words(row[name])}" for name in _LIMITS if name in row)
    return "; ".join(words)


def _in_words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _begins(mark: str, start: str) -> bool:
    return len(start) >= _LEAST_DIGITS and mark.startswith(start.lower())
