"""Commands about datasets: ``data ls``, ``show``, ``put``, ``get``."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import IO, Annotated, Any

from cyclopts import Parameter
from msgspec.structs import asdict

from labmesh.cli import assembly
from labmesh.cli.options import ClientOptions
from labmesh.cli.outcomes import DONE
from labmesh.cli.output import Output, TransferProgress, age, one_line, shown_value, size
from labmesh.cli.running import connected, run
from labmesh.cli.values import keyword_values
from labmesh.client import BankClient, DirectorClientAgent
from labmesh.errors import ConfigError, Conflict, LinkLost, NotFound
from labmesh.protocol.messages import DatasetRecord

__all__ = ["get", "ls", "put", "show"]

_OPTIONS = ClientOptions()
_FIND_S = 1.0
_PAGE = 1000
_STREAM = "-"
_SUFFIXES = {"npy": ".npy", "text": ".txt", "json": ".json"}
_SAFE_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")

_Bank = Annotated[str | None, Parameter(help="The bank's id. Without it: any bank, all banks.")]


def ls(
    *,
    bank: _Bank = None,
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
        records = [
            record
            for bank in await _banks(client, bank_id)
            for record in await bank.list(limit=limit, newest_first=True)
        ]
    records.sort(key=lambda each: each.created, reverse=True)
    if out.json:
        for record in records:
            out.record(asdict(record))
        return DONE
    if not records:
        out.say("No datasets yet. Store one: labmesh data put FILE")
        return DONE
    now = time.time()
    out.table(
        ("ID", "NAME", "SIZE", "KIND", "AGE", "RELAY", "BANK"),
        [
            (
                each.dataset_id,
                each.name,
                size(each.size),
                each.kind,
                age(now - each.created),
                each.relay_id,
                each.bank_id,
            )
            for each in records
        ],
    )
    if len(records) >= limit:
        out.say(f"The newest {limit} of each bank; more: --limit {min(_PAGE, limit * 10)}")
    return DONE


def show(
    dataset: Annotated[str, Parameter(help="The dataset's id.")],
    /,
    *,
    bank: _Bank = None,
    options: ClientOptions = _OPTIONS,
) -> int:
    """Show what is known of a dataset: size, SHA-256, origin, metadata.

    For example:

        labmesh data show 20260131T120000-1a2b3c4d
        labmesh data show scan-42 --bank bank-0 --json
    """
    return run(_show(dataset, bank, options))


async def _show(dataset_id: str, bank_id: str | None, options: ClientOptions) -> int:
    async with connected(options) as client:
        _, record = await _find(client, dataset_id, bank_id)
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
    for label, text in (("relay", record.relay_id), ("name", record.name)):
        if text:
            out.line(f"  {label:<8} {one_line(text)}")
    for key, value in record.meta.items():
        out.line(f"  meta     {one_line(str(key))} = {one_line(shown_value(value))}")
    out.line()
    out.line(f"Fetch it: labmesh data get {record.dataset_id}")


def put(
    file: Annotated[
        str, Parameter(help="The file; - is standard input.", allow_leading_hyphen=True)
    ],
    /,
    *,
    name: Annotated[str | None, Parameter(help="Its name. Without it: the file's.")] = None,
    meta: Annotated[
        list[str] | None,
        Parameter(
            negative="",
            help="What is worth knowing: name=value, the value JSON or else text; again for each "
            "further one.",
        ),
    ] = None,
    relay: Annotated[str, Parameter(help="The id of the relay that it comes from.")] = "",
    id_: Annotated[
        str | None, Parameter(name="--id", help="Its id. Without it: date, time and chance.")
    ] = None,
    bank: _Bank = None,
    options: ClientOptions = _OPTIONS,
) -> int:
    """Store a file as a dataset, and print its id once it is verified and on the bank's disk.

    A broken upload is resumed; how patiently, [relay] upload_timeout (or --timeout),
    upload_retries and upload_chunk of the configuration file say.

    For example:

        labmesh data put scan.npy --meta sample=A1 --meta temperature=4.2
        cat scan.csv | labmesh data put - --name scan.csv
    """
    known = keyword_values(meta or [])
    if file == _STREAM:
        return run(_put(sys.stdin.buffer, name or "", known, relay, id_, bank, options))
    with Path(file).open("rb") as stream:
        title = Path(file).name if name is None else name
        return run(_put(stream, title, known, relay, id_, bank, options))


async def _put(
    stream: IO[bytes],
    name: str,
    meta: dict[str, Any],
    relay_id: str,
    dataset_id: str | None,
    bank_id: str | None,
    options: ClientOptions,
) -> int:
    out = options.out
    settings = assembly.upload_settings(options.settings)
    if options.timeout is not None:
        settings = dataclasses.replace(settings, timeout_s=options.timeout)
    async with connected(options) as client:
        bank = await client.get_databank_agent(bank_id, wait=_FIND_S)
        with out.progress(f"to {bank.bank_id}") as progress:
            record = await client.at_home(
                client.upload_to(
                    bank.bank_id,
                    stream,
                    settings=settings,
                    name=name,
                    kind="npy" if name.endswith(".npy") else "bytes",
                    meta=meta,
                    relay_id=relay_id,
                    dataset_id=dataset_id,
                    progress=progress,
                )
            )
    out.line(record.dataset_id)
    if out.json:
        out.record(asdict(record))
    _tell(f"stored in {record.bank_id}, verified", record, progress, out)
    return DONE


def get(
    dataset: Annotated[str, Parameter(help="The dataset's id.")],
    target: Annotated[
        str | None,
        Parameter(
            help="The file or folder; - is standard output. Without it: this folder.",
            allow_leading_hyphen=True,
        ),
    ] = None,
    /,
    *,
    bank: _Bank = None,
    force: Annotated[
        bool, Parameter(negative="", show_default=False, help="Write over a file that is there.")
    ] = False,
    options: ClientOptions = _OPTIONS,
) -> int:
    """Fetch a dataset into a file, which appears whole and verified, or not at all.

    Prints the file's path. In a folder it gets the dataset's id as its name, with a suffix.

    For example:

        labmesh data get 20260131T120000-1a2b3c4d
        labmesh data get scan-42 scan.npy --force
        labmesh data get scan-42 - | head
    """
    return run(_get(dataset, target, bank, force, options))


async def _get(
    dataset_id: str, target: str | None, bank_id: str | None, force: bool, options: ClientOptions
) -> int:
    out = options.out
    async with connected(options) as client:
        bank, record = await _find(client, dataset_id, bank_id)
        path = None if target == _STREAM else _target(target, record, force)
        with out.progress(f"from {bank.bank_id}") as progress:
            if path is None:
                content = await bank.read(dataset_id, progress=progress)
            else:
                await bank.download(dataset_id, path, progress=progress)
    if path is None:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return DONE
    out.line(str(path))
    if out.json:
        out.record({**asdict(record), "path": str(path)})
    _tell("verified", record, progress, out)
    return DONE


def _target(target: str | None, record: DatasetRecord, force: bool) -> Path:
    path = Path(target or ".")
    folder = path if (target or "").endswith(("/", os.sep)) else path.parent
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(folder))
    if path.is_dir():
        path = path / f"{record.dataset_id}{_suffix(record)}"
    if path.exists() and not force:
        raise Conflict(f"{path} exists; give another name, or --force to write over it")
    return path


def _suffix(record: DatasetRecord) -> str:
    suffix = _SUFFIXES.get(record.kind) or Path(record.name).suffix
    harmless = _SAFE_SUFFIX.fullmatch(suffix) and not record.dataset_id.endswith(suffix)
    return suffix if harmless else ""


def _tell(what: str, record: DatasetRecord, progress: TransferProgress, out: Output) -> None:
    seconds = max(progress.elapsed_s, 1e-6)
    out.say(
        f"{size(record.size)} in {age(seconds)} ({size(int(record.size / seconds))}/s), {what}: "
        f"sha256 {record.sha256}"
    )


async def _banks(client: DirectorClientAgent, bank_id: str | None) -> list[BankClient]:
    """The bank of this id, or all; the first one is waited for a moment."""
    first = await client.get_databank_agent(bank_id, wait=_FIND_S)
    if bank_id is not None:
        return [first]
    listed = await client.list_banks()
    return [await client.get_databank_agent(each["bank_id"], wait=0) for each in listed]


async def _find(
    client: DirectorClientAgent, dataset_id: str, bank_id: str | None
) -> tuple[BankClient, DatasetRecord]:
    """The first bank that has this dataset.

    :raises NotFound: none of them has it.
    :raises LinkLost: those that answer do not have it.
    """
    banks = await _banks(client, bank_id)
    unreachable: LinkLost | None = None
    for bank in banks:
        try:
            return bank, await bank.show(dataset_id)
        except NotFound:
            continue
        except LinkLost as exc:
            unreachable = exc
    if unreachable is not None:
        raise unreachable
    names = ", ".join(each.bank_id for each in banks)
    raise NotFound(f"no dataset {dataset_id!r} in {names}; 'labmesh data ls' lists the newest")
