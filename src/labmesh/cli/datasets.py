"""Commands that look at datasets: ``data ls``, ``search``, ``show``, ``history``, ``trash``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from cyclopts import Parameter
from msgspec.structs import asdict

from labmesh.cli.data_banks import BankId, SearchOptions, banks_of, find, print_records
from labmesh.cli.options import ClientOptions
from labmesh.cli.outcomes import DONE
from labmesh.cli.output import Output, age, one_line, shown_value, size
from labmesh.cli.running import connected, run
from labmesh.datasets.origin import STATES, origin_lines, state_rows
from labmesh.errors import ConfigError, NotFound
from labmesh.protocol.messages import DatasetRecord

__all__ = ["history", "ls", "search", "show", "trash"]

_OPTIONS = ClientOptions()
_ALL = SearchOptions()
_PAGE = 1000
#: How ``--sort`` orders the datasets of several banks.
_KEYS = {
    "sequence": lambda record: record.created,
    "created": lambda record: record.created,
    "size": lambda record: record.size,
    "name": lambda record: record.name,
}


def ls(
    *,
    bank: BankId = None,
    limit: Annotated[int, Parameter(help="So many datasets of each bank at most.")] = 20,
    options: ClientOptions = _OPTIONS,
) -> int:
    """List datasets, the newest first. With --json one dataset a line.

    For example:

        labmesh data ls
        labmesh data ls --bank bank-0 --limit 100 --json
    """
    if not 1 <= limit <= _PAGE:
        raise ConfigError(f"--limit takes a whole number from 1 to {_PAGE}")
    return run(_ls(bank, limit, options))


async def _ls(bank_id: str | None, limit: int, options: ClientOptions) -> int:
    out = options.out
    async with connected(options) as client:
        listed = [
            await bank.list(limit=limit, newest_first=True)
            for bank in await banks_of(client, bank_id)
        ]
    records = sorted((record for each in listed for record in each), key=_created, reverse=True)
    if not records:
        out.say("No datasets yet. Store one: labmesh data put FILE")
        return DONE
    print_records(records, out)
    if any(len(each) >= limit for each in listed):
        out.say(f"The newest {limit} of each bank; more: --limit {min(_PAGE, limit * 10)}")
    return DONE


def _created(record: DatasetRecord) -> float:
    return record.created


def search(
    *conditions: Annotated[
        str,
        Parameter(
            help="Conditions such as sample=A1, 'temperature<4', name=scan-*, 'size>1GB'; words "
            "without = < > ~ must be in the id, name, tags or metadata."
        ),
    ],
    which: SearchOptions = _ALL,
    sort: Annotated[
        str | None,
        Parameter(
            help="size, name or created; with a minus before it the other way round (--sort=-size "
            "begins with the largest). Without it: the newest first."
        ),
    ] = None,
    bank: BankId = None,
    limit: Annotated[int, Parameter(help="So many datasets at most.")] = 50,
    options: ClientOptions = _OPTIONS,
) -> int:
    """Find datasets by what is known of them. With --json one dataset a line.

    For example:

        labmesh data search sample=A1 'temperature<4' --since 2h
        labmesh data search iv-curve --relay Inst-0 --tag good --sort size
        labmesh data search --parent 20260131T120000-1a2b3c4d --json
    """
    if limit < 1:
        raise ConfigError("--limit takes a whole number, at least 1")
    return run(_search(conditions, which, sort, bank, limit, options))


async def _search(
    words: Sequence[str],
    which: SearchOptions,
    sort: str | None,
    bank_id: str | None,
    limit: int,
    options: ClientOptions,
) -> int:
    out = options.out
    asked: dict[str, Any] = which.conditions(words)
    async with connected(options) as client:
        records = [
            record
            for bank in await banks_of(client, bank_id)
            for record in await bank.search(limit=limit + 1, sort=sort, **asked)
        ]
    key = _KEYS.get((sort or "created").removeprefix("-"), _created)
    records.sort(key=key, reverse=sort is None or sort.startswith("-"))
    if not records:
        out.say("Nothing meets these conditions. All there is: labmesh data ls")
        return DONE
    print_records(records[:limit], out)
    if len(records) > limit:
        out.say(f"The first {limit}; more: --limit {limit * 10}")
    return DONE


def show(
    dataset: Annotated[str, Parameter(help="The dataset's id.")],
    /,
    *,
    bank: BankId = None,
    options: ClientOptions = _OPTIONS,
) -> int:
    """Show what is known of a dataset: size, SHA-256, metadata, origin, and with which settings it
    was taken (the states of all relays at its start).

    For example:

        labmesh data show 20260131T120000-1a2b3c4d
        labmesh data show scan-42 --bank bank-0 --json
    """
    return run(_show(dataset, bank, options))


async def _show(dataset_id: str, bank_id: str | None, options: ClientOptions) -> int:
    async with connected(options) as client:
        holder, _ = await find(client, dataset_id, bank_id)
        record = await holder.show(dataset_id, full=True)
    if options.json:
        options.out.record(asdict(record))
        return DONE
    _print_record(record, options.out)
    return DONE


def _print_record(record: DatasetRecord, out: Output) -> None:
    created = datetime.fromtimestamp(record.created).astimezone()
    out.line(record.dataset_id, "bold")
    out.line(f"  size     {size(record.size)} ({record.size} bytes), kind {record.kind}")
    out.line(f"  sha256   {record.sha256}")
    out.line(f"  stored   {created:%Y-%m-%d %H:%M:%S %z}, {age(time.time() - record.created)} ago")
    out.line(f"  bank     {record.bank_id}")
    labelled = (
        ("relay", record.relay_id),
        ("name", record.name),
        ("tags", " ".join(record.tags)),
        ("made of", " ".join(record.parents)),
    )
    for label, text in labelled:
        if text:
            out.line(f"  {label:<8} {one_line(text)}")
    for key, value in record.meta.items():
        out.line(f"  meta     {one_line(str(key))} = {one_line(shown_value(value))}")
    for name, text in origin_lines(record.provenance):
        out.line(f"  origin   {one_line(name)} = {one_line(text)}")
    _print_states(record, out)
    out.line()
    out.line(f"Fetch it: labmesh data get {record.dataset_id}")


def _print_states(record: DatasetRecord, out: Output) -> None:
    """Those at its start; those at its end only where something else stands there."""
    first = state_rows(record.provenance, "states_at_start")
    last = state_rows(record.provenance, "states_at_commit")
    changed = [row for row in last if row not in first]
    for rows, words in ((first, STATES["states_at_start"]), (changed, "changed until its end")):
        if rows:
            out.line(f"  settings {words}:")
            out.table(("RELAY", "VALUE", ""), rows)


def history(
    dataset: Annotated[str, Parameter(help="The dataset's id.")],
    /,
    *,
    bank: BankId = None,
    options: ClientOptions = _OPTIONS,
) -> int:
    """List the notes and changes of tags of a dataset, the oldest first.

    For example:

        labmesh data history scan-42
    """
    return run(_history(dataset, bank, options))


async def _history(dataset_id: str, bank_id: str | None, options: ClientOptions) -> int:
    out = options.out
    async with connected(options) as client:
        holder, _ = await find(client, dataset_id, bank_id)
        annotations = await holder.history(dataset_id)
    for each in annotations:
        if out.json:
            out.record(asdict(each))
    if not annotations:
        out.say(f"No notes yet. Write one: labmesh data note {dataset_id} 'what you saw'")
        return DONE
    out.table(
        ("WHEN", "WHO", "TAGS", "NOTE"),
        [
            (
                _moment(each.time),
                each.who,
                " ".join([*map("+{}".format, each.add_tags), *map("-{}".format, each.remove_tags)]),
                each.note,
            )
            for each in annotations
        ],
    )
    return DONE


def trash(
    *datasets: Annotated[str, Parameter(help="With --empty: ids. Without them: all.")],
    empty: Annotated[
        bool,
        Parameter(
            negative="", show_default=False, help="Delete for ever, which gives their room back."
        ),
    ] = False,
    bank: BankId = None,
    options: ClientOptions = _OPTIONS,
) -> int:
    """List what was deleted and can still be restored; or, with --empty, delete it for ever.

    For example:

        labmesh data trash
        labmesh data restore scan-42
        labmesh data trash --empty scan-41
    """
    if not empty:
        if datasets:
            raise ConfigError("the trash is listed as a whole; --empty deletes some for ever")
        return run(_trash(bank, options))
    return run(_empty(datasets, bank, options))


async def _empty(datasets: tuple[str, ...], bank_id: str | None, options: ClientOptions) -> int:
    out = options.out
    async with connected(options) as client:
        banks = await banks_of(client, bank_id)
        holders = [
            (each.record.dataset_id, bank)
            for bank in banks
            for each in await bank.trash()
            if not datasets or each.record.dataset_id in datasets
        ]
        missing = set(datasets) - {dataset_id for dataset_id, _ in holders}
        if missing:
            raise NotFound(
                f"{', '.join(sorted(missing))}: not in the trash; nothing was deleted for ever"
            )
        for dataset_id, bank in holders:
            await bank.empty_trash([dataset_id])
            out.line(dataset_id)
            if out.json:
                out.record({"purged": dataset_id, "bank_id": bank.bank_id})
    out.say(f"{len(holders)} gone for ever")
    return DONE


async def _trash(bank_id: str | None, options: ClientOptions) -> int:
    out = options.out
    async with connected(options) as client:
        entries = [each for bank in await banks_of(client, bank_id) for each in await bank.trash()]
    for each in entries:
        if out.json:
            out.record(asdict(each))
    if not entries:
        out.say("The trash is empty.")
        return DONE
    out.table(
        ("ID", "NAME", "SIZE", "DELETED", "GONE", "WHO", "WHY"),
        [
            (
                each.record.dataset_id,
                each.record.name,
                size(each.record.size),
                _moment(each.deleted),
                _moment(each.purge),
                each.who,
                each.why,
            )
            for each in entries
        ],
    )
    return DONE


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M:%S}"
