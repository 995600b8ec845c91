"""The commands ``audit``: who did what at the nodes of this machine, and whether that record is
whole.
"""

from __future__ import annotations

import heapq
import re
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from labmesh.access.audit_files import OFF, audit_file, note_by_command
from labmesh.access.keyring import KeyFolder
from labmesh.cli.options import MeshOptions
from labmesh.cli.outcomes import CHECKSUM, DONE
from labmesh.cli.output import Output, one_line
from labmesh.errors import ConfigError, NotFound
from labmesh.protocol.access import Grant, fingerprint
from labmesh.protocol.audit import Entry, Line, Wanted
from labmesh.protocol.audit_check import Checker, Verdict
from labmesh.protocol.query import moment
from labmesh.storage.journal_reading import check_journal, entries_of, head_beside, journal_files

__all__ = ["note", "note_invited", "show", "verify"]

_OPTIONS = MeshOptions()
_HASH = re.compile(r"[0-9a-f]{64}")
_ROTATED = re.compile(r"@\d{12}$")

_Files = Annotated[
    Path, Parameter(help="Journals. Without one: all of the nodes that ran as this user here.")
]


def show(
    *files: _Files,
    node: Annotated[str, Parameter(help="Of this node: relay, Inst-0, 'psu-*'.")] = "",
    user: Annotated[str, Parameter(help="Done by: ana, 'client:*', a fingerprint.")] = "",
    since: Annotated[
        str | None, Parameter(help="Not before: 2h, 3d (ago), 2026-01-31, 2026-01-31T14:00.")
    ] = None,
    method: Annotated[str, Parameter(help="This method, also in batches; with * and ?.")] = "",
    refused: Annotated[
        bool, Parameter(negative="", show_default=False, help="What was refused, alone.")
    ] = False,
    options: MeshOptions = _OPTIONS,
) -> int:
    """Show who did what at the nodes of this machine: the oldest first.

    For example:

        labmesh audit show --since 2h
        labmesh audit show --user ana --method 'set_*' --json
    """
    out = options.out
    journals = _journals(files, options)
    from_then = None if since is None else moment(since, time.time())
    wanted = Wanted(node=node, user=user, method=method, since=from_then, refused=refused)
    count = 0
    for line in heapq.merge(*(_fitting(each, wanted) for each in journals), key=_time_of):
        count += 1
        if out.json:
            out.record(_facts(line))
        else:
            _print(line.entry, out)
    if not count:
        out.say(f"nothing of that is in {_named(journals)}")
    return DONE


def verify(
    *files: _Files,
    head: Annotated[
        str | None,
        Parameter(help="A hash of a line that was kept elsewhere: it must be there still."),
    ] = None,
    options: MeshOptions = _OPTIONS,
) -> int:
    """Check that no line of the journals was changed, removed, or put there later.

    That the end is missing shows only by a hash that was kept elsewhere: by --head, or by the
    .head file beside the journal, which whoever cuts the one can change, too. Exit code 7 when
    something is wrong.

    For example:

        labmesh audit verify
    """
    journals = _journals(files, options)
    if head is not None and not _HASH.fullmatch(head):
        raise ConfigError("--head takes the hash of a line: 64 digits 0-9 and a-f")
    if head is not None and len(journals) > 1:
        raise ConfigError(f"--head belongs to one journal; name its file: {_named(journals)}")
    verdicts = [_verified(each, head, options.out) for each in journals]
    return CHECKSUM if any(each.faults for each in verdicts) else DONE


def _verified(path: Path, head: str | None, out: Output) -> Verdict:
    is_part = _ROTATED.search(path.stem) is not None
    # Before the lines: it moves on while the node writes.
    heads = [] if is_part else [head_beside(path)]
    checker = Checker(whole=not is_part, heads=filter(None, [*heads, head]))
    verdict = check_journal([path] if is_part else journal_files(path), checker)
    if out.json:
        faults = [msgspec.structs.asdict(each) for each in verdict.faults]
        facts = msgspec.structs.asdict(verdict) | {"faults": faults, "notes": [*verdict.notes]}
        out.record({"event": "verified", "journal": str(path), **facts})
    for fault in verdict.faults:
        place = f"{fault.file} line {fault.row}: " if fault.row else f"{path.name}: "
        out.line(f"{place}{fault.text} ({fault.kind})")
    state = "BROKEN" if verdict.faults else "whole"
    out.line(f"{path.name}: {verdict.lines} lines, {state}; line {verdict.n} has hash")
    out.line(f"  {verdict.hash or '(there is none)'}")
    for each in verdict.notes:
        out.say(f"  {each}")
    if not is_part and not heads[0]:
        out.say("  no .head file is beside it, so that a missing end would not show")
    return verdict


# ── which journals, which lines ─────────────────────────────────────────────────────────────────


def _journals(files: Sequence[Path], options: MeshOptions) -> list[Path]:
    """The journals that are meant, each by its newest file."""
    for each in files:
        if not each.exists() and not journal_files(each):
            raise NotFound(f"there is no journal {each}")
    if files:
        return list(files)
    security = options.security
    place = audit_file(security.audit_dir, security.network, "broker", "broker", has_keys=True)
    if place is None:
        raise ConfigError(f'there is no journal here: audit_dir is "{OFF}"; name a file')
    folder = place.parent
    names = {_ROTATED.sub("", each.stem) for each in folder.glob("*.jsonl")}
    if not names:
        raise NotFound(
            f"there is no journal in {folder}: nodes keep one where they have keys, or where "
            "audit_dir is set; otherwise name its file"
        )
    return [folder / f"{name}.jsonl" for name in sorted(names)]


def _fitting(path: Path, wanted: Wanted) -> Iterator[Line]:
    files = [path] if _ROTATED.search(path.stem) else journal_files(path)
    return (each for each in entries_of(files) if wanted.fits(each.entry))


def _time_of(line: Line) -> float:
    return line.entry.time


def _named(journals: Sequence[Path]) -> str:
    return ", ".join(map(str, journals))


# ── how a line looks ────────────────────────────────────────────────────────────────────────────


def _facts(line: Line) -> dict[str, Any]:
    entry = msgspec.structs.asdict(line.entry)
    entry["parameters"] = msgspec.json.decode(line.entry.parameters)
    told = {key: each for key, each in entry.items() if each not in ("", (), None)}
    return {"n": line.n, "hash": line.hash, **told}


def _print(entry: Entry, out: Output) -> None:
    clock = datetime.fromtimestamp(entry.time).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    who = entry.user.partition("#")[0] + (f" at {entry.address}" if entry.address else "")
    parameters = bytes(entry.parameters).decode("utf-8", "replace")
    given = "" if parameters == "null" else f" {parameters}"
    name = f"{entry.method} =" if entry.access == "set" else entry.method
    took = "" if entry.duration_s is None else f" in {1000 * entry.duration_s:.1f} ms"
    ended = entry.outcome + took + (f": {entry.error}" if entry.error else "")
    more = f" ({entry.text})" if entry.text else ""
    about = (
        entry.what
        if entry.object in ("", entry.node.rpartition(" ")[2])
        else (f"{entry.what} {entry.object}")
    )
    out.line(
        one_line(f"{clock}  {entry.node}  {who}  {about}: {name}{given} → {ended}{more}"),
        "red" if entry.outcome == "refused" else None,
    )


# ── for other commands ──────────────────────────────────────────────────────────────────────────


def note(options: MeshOptions, folder: KeyFolder, method: str, grant: Grant, **more: Any) -> None:
    """Have in the broker's journal what this command did to who is admitted."""
    facts = {"role": grant.role, "fingerprint": fingerprint(grant.key), **more}
    _note(options, folder, method, grant.name, facts)


def note_invited(options: MeshOptions, folder: KeyFolder, name: str, **facts: Any) -> None:
    """The same of an invitation: there is no key yet."""
    _note(options, folder, "invite", name, facts)


def _note(
    options: MeshOptions, folder: KeyFolder, method: str, name: str, facts: dict[str, Any]
) -> None:
    if not folder.keeps_list:
        return
    audit_dir = options.security.audit_dir
    trouble = note_by_command(audit_dir, folder.network, method, name, **facts)
    if trouble:
        options.out.trouble(f"warning: {trouble}")
