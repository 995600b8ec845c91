"""Commands that move datasets: ``data put`` and ``data get``."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any

from cyclopts import Parameter
from msgspec.structs import asdict

from labmesh.cli import assembly
from labmesh.cli.data_banks import (
    FIND_S,
    BankId,
    SearchOptions,
    banks_of,
    found,
    from_whole,
    holders,
    named,
    on_each,
)
from labmesh.cli.options import ClientOptions
from labmesh.cli.outcomes import DONE
from labmesh.cli.output import Output, TransferProgress, age, size
from labmesh.cli.running import connected, run
from labmesh.cli.values import keyword_values
from labmesh.client import BankClient
from labmesh.content import kind_of_file, suffix_of
from labmesh.datasets.export import sha256_of
from labmesh.errors import ConfigError, Conflict
from labmesh.protocol.messages import DatasetRecord

__all__ = ["get", "put"]

_OPTIONS = ClientOptions()
_NONE = SearchOptions()
_STREAM = "-"
_PIECE_BYTES = 2**20
_PUT_AGAIN = "nothing is kept of an upload that did not end: the same command begins it again"
_GET_AGAIN = "the same command begins again"
#: Windows keeps no part of a file.
_GET_ON = "the same command goes on where it was" if os.name == "posix" else _GET_AGAIN


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
    kind: Annotated[
        str | None,
        Parameter(help="npy, netcdf, parquet, text, json, bytes. Without it: by the suffix."),
    ] = None,
    tag: Annotated[
        list[str] | None, Parameter(negative="", help="A tag; again for each further one.")
    ] = None,
    parent: Annotated[
        list[str] | None,
        Parameter(negative="", help="The id of a dataset that it was made from; again for more."),
    ] = None,
    relay: Annotated[str, Parameter(help="The id of the relay that it comes from.")] = "",
    id_: Annotated[
        str | None, Parameter(name="--id", help="Its id. Without it: date, time and chance.")
    ] = None,
    bank: BankId = None,
    options: ClientOptions = _OPTIONS,
) -> int:
    """Store a file as a dataset, and print its id once it is verified and on the bank's disk.

    A broken upload is resumed; how patiently, [relay] upload_timeout (or --timeout),
    upload_retries and upload_chunk of the configuration file say.

    For example:

        labmesh data put scan.npy --meta sample=A1 --meta temperature=4.2
        cat scan.csv | labmesh data put - --name scan.csv --tag good
    """
    details: dict[str, Any] = {
        "meta": keyword_values(meta or []),
        "tags": tag or (),
        "parents": parent or (),
        "relay_id": relay,
        "dataset_id": id_,
    }
    if file == _STREAM:
        details |= {"name": name or "", "kind": kind or "bytes"}
        with _saying(_PUT_AGAIN, options.out):
            return run(_put(sys.stdin.buffer, details, bank, options))
    with Path(file).open("rb") as stream:
        details["name"] = Path(file).name if name is None else name
        details["kind"] = kind or kind_of_file(file)
        with _saying(_PUT_AGAIN, options.out):
            return run(_put(stream, details, bank, options))


async def _put(
    stream: IO[bytes], details: dict[str, Any], bank_id: str | None, options: ClientOptions
) -> int:
    out = options.out
    settings = assembly.upload_settings(options.settings)
    if options.timeout is not None:
        settings = dataclasses.replace(settings, timeout_s=options.timeout)
    async with connected(options) as client:
        bank = await client.get_databank_agent(bank_id, wait=FIND_S)
        with out.progress(f"to {bank.bank_id}") as progress:
            record = await bank.upload(stream, settings=settings, progress=progress, **details)
    out.line(record.dataset_id)
    if out.json:
        out.record(asdict(record))
    _tell(f"stored in {record.bank_id}, verified", record, progress, out)
    return DONE


def get(
    *words: Annotated[
        str,
        Parameter(
            help="A dataset's id and a file or folder (- is standard output; without it: this "
            "folder); or several ids and a folder; or, with --all, a folder.",
            allow_leading_hyphen=True,
        ),
    ],
    all_: Annotated[
        bool,
        Parameter(
            name="--all",
            negative="",
            show_default=False,
            help="All datasets, or all that meet the options below.",
        ),
    ] = False,
    which: SearchOptions = _NONE,
    bank: BankId = None,
    force: Annotated[
        bool, Parameter(negative="", show_default=False, help="Write over a file that is there.")
    ] = False,
    options: ClientOptions = _OPTIONS,
) -> int:
    """Fetch datasets into files, each of which appears whole and verified, or not at all.

    Prints their paths. In a folder a dataset gets its id as its name, with a suffix. A download
    that broke off goes on where it was when it is asked for again.

    For example:

        labmesh data get 20260131T120000-1a2b3c4d
        labmesh data get scan-42 scan.npy --force
        labmesh data get scan-42 - | head
        labmesh data get scan-42 scan-43 results/
        labmesh data get --all results/ --since 2h --where sample=A1
    """
    if all_:
        if len(words) > 1:
            raise ConfigError("with --all give one folder; conditions go behind --where")
        with _saying(_GET_ON, options.out):
            return run(_get_all(words[0] if words else ".", which, bank, force, options))
    if which.given:
        raise ConfigError("--since, --where and the like choose among --all")
    named(words)
    if len(words) <= 2:
        target = words[1] if len(words) == 2 else None
        with _saying(_GET_AGAIN if target == _STREAM else _GET_ON, options.out):
            return run(_get(words[0], target, bank, force, options))
    with _saying(_GET_ON, options.out):
        return run(_get_many(words[:-1], words[-1], bank, force, options))


@contextmanager
def _saying(what_continues: str, out: Output) -> Iterator[None]:
    """Tell whoever presses Ctrl-C what the same command will do."""
    try:
        yield
    except KeyboardInterrupt:
        out.say(f"interrupted; {what_continues}")
        raise


async def _get(
    dataset_id: str, target: str | None, bank_id: str | None, force: bool, options: ClientOptions
) -> int:
    out = options.out
    async with connected(options) as client:

        async def fetch(bank: BankClient, record: DatasetRecord) -> None:
            if target == _STREAM:
                await _fetch_out(bank, record, out)
            else:
                await _fetch(bank, record, _target(target, record, force), out)

        await from_whole(holders(client, dataset_id, bank_id), fetch, out)
    return DONE


async def _fetch_out(bank: BankClient, record: DatasetRecord, out: Output) -> None:
    with tempfile.TemporaryDirectory(prefix="labmesh-") as folder:
        path = Path(folder) / "dataset"  # verified as a whole before a byte is printed
        with out.progress(f"from {bank.bank_id}") as progress:
            await bank.download(record.dataset_id, path, progress=progress)
        await asyncio.to_thread(_print, path)


async def _get_many(
    datasets: tuple[str, ...], folder: str, bank_id: str | None, force: bool, options: ClientOptions
) -> int:
    place = await asyncio.to_thread(_folder, folder)
    async with connected(options) as client:

        async def fetch_one(bank: BankClient, record: DatasetRecord) -> None:
            await _fetch_into(place, bank, record, force, options.out)

        async def fetch(dataset_id: str) -> None:
            await from_whole(holders(client, dataset_id, bank_id), fetch_one, options.out)

        return await on_each(datasets, options.out, fetch)


async def _get_all(
    folder: str, which: SearchOptions, bank_id: str | None, force: bool, options: ClientOptions
) -> int:
    place = await asyncio.to_thread(_folder, folder)
    async with connected(options) as client:
        banks = await banks_of(client, bank_id)
        chosen: dict[str, list[tuple[BankClient, DatasetRecord]]] = {}
        async for bank, record in found(banks, which.conditions()):
            chosen.setdefault(record.dataset_id, []).append((bank, record))
        if not chosen:
            options.out.say("Nothing meets these conditions. All there is: labmesh data ls")
            return DONE

        async def fetch_one(bank: BankClient, record: DatasetRecord) -> None:
            await _fetch_into(place, bank, record, force, options.out)

        async def fetch(dataset_id: str) -> None:
            await from_whole(_each(chosen[dataset_id]), fetch_one, options.out)

        return await on_each(tuple(chosen), options.out, fetch)


async def _each(
    known: Sequence[tuple[BankClient, DatasetRecord]],
) -> AsyncIterator[tuple[BankClient, DatasetRecord]]:
    for each in known:
        yield each


async def _fetch_into(
    folder: Path, bank: BankClient, record: DatasetRecord, force: bool, out: Output
) -> None:
    """One of many: what is there already is not fetched again."""
    path = folder / _file_name(record)
    if await asyncio.to_thread(_is_there, path, record):
        _tell_path(path, record, out)
        out.say(f"{path} is there already, verified")
        return
    if path.exists() and not force:
        raise Conflict(f"{path} exists with other content; --force writes over it")
    await _fetch(bank, record, path, out)


async def _fetch(bank: BankClient, record: DatasetRecord, path: Path, out: Output) -> None:
    with out.progress(f"from {bank.bank_id}") as progress:
        await bank.download(record.dataset_id, path, progress=progress)
    _tell_path(path, record, out)
    _tell("verified", record, progress, out, resumed=progress.first)


def _print(path: Path) -> None:
    with path.open("rb") as file:
        shutil.copyfileobj(file, sys.stdout.buffer, _PIECE_BYTES)
    sys.stdout.buffer.flush()


def _is_there(path: Path, record: DatasetRecord) -> bool:
    is_file = path.is_file() and path.stat().st_size == record.size
    return is_file and sha256_of(path) == record.sha256


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder", text)
    return Path(text)


def _target(target: str | None, record: DatasetRecord, force: bool) -> Path:
    path = Path(target or ".")
    _folder(str(path if (target or "").endswith(("/", os.sep)) else path.parent))
    if path.is_dir():
        path = path / _file_name(record)
    if path.exists() and not force:
        raise Conflict(f"{path} exists; give another name, or --force to write over it")
    return path


def _file_name(record: DatasetRecord) -> str:
    suffix = suffix_of(record.kind, record.name)
    return record.dataset_id + ("" if record.dataset_id.endswith(suffix) else suffix)


def _tell_path(path: Path, record: DatasetRecord, out: Output) -> None:
    out.line(str(path))
    if out.json:
        out.record({**asdict(record), "path": str(path)})


def _tell(
    what: str, record: DatasetRecord, progress: TransferProgress, out: Output, resumed: int = 0
) -> None:
    seconds = max(progress.elapsed_s, 1e-6)
    speed = size(int((record.size - resumed) / seconds))
    rest = f" but {size(resumed)}, which were there" if resumed else ""
    out.say(
        f"{size(record.size)}{rest} in {age(seconds)} ({speed}/s), {what}: sha256 {record.sha256}"
    )
