"""Commands that change what is known of datasets: ``data rm``, ``restore``, ``verify``, ``tag``,
``note``.
"""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from msgspec.structs import asdict

from labmesh.cli.data_banks import (
    BankId,
    SearchOptions,
    banks_of,
    find,
    first_answer,
    found,
    named,
    on_each,
)
from labmesh.cli.options import ClientOptions
from labmesh.cli.outcomes import DONE
from labmesh.cli.running import connected, run
from labmesh.errors import ConfigError
from labmesh.protocol.messages import DatasetRecord

__all__ = ["note", "restore", "rm", "tag", "verify"]

_OPTIONS = ClientOptions()
_NONE = SearchOptions()
_Ids = Annotated[str, Parameter(help="Ids of datasets.")]


def rm(
    *datasets: _Ids,
    why: Annotated[str, Parameter(help="The reason, which stands in the trash.")] = "",
    bank: BankId = None,
    options: ClientOptions = _OPTIONS,
) -> int:
    """Delete datasets: they go into the trash, from which 'restore' brings them back until their
    grace period ends ([bank] trash_days).

    For example:

        labmesh data rm scan-42 --why "wrong sample"
        labmesh data restore scan-42
    """
    named(datasets)
    return run(_rm(datasets, why, bank, options))


async def _rm(
    datasets: tuple[str, ...], why: str, bank_id: str | None, options: ClientOptions
) -> int:
    out = options.out
    async with connected(options) as client:

        async def delete(dataset_id: str) -> None:
            holder, record = await find(client, dataset_id, bank_id)
            await holder.delete(dataset_id, why=why)
            out.line(dataset_id)
            if out.json:
                out.record({"deleted": dataset_id, "bank_id": record.bank_id})
            out.say(f"deleted; bring it back: labmesh data restore {dataset_id}")

        return await on_each(datasets, out, delete)


def restore(*datasets: _Ids, bank: BankId = None, options: ClientOptions = _OPTIONS) -> int:
    """Bring datasets back out of the trash.

    For example:

        labmesh data restore scan-42
    """
    named(datasets)
    return run(_restore(datasets, bank, options))


async def _restore(datasets: tuple[str, ...], bank_id: str | None, options: ClientOptions) -> int:
    out = options.out
    async with connected(options) as client:
        banks = await banks_of(client, bank_id)

        async def restore_one(dataset_id: str) -> None:
            _, record = await first_answer(
                banks,
                lambda bank: bank.restore(dataset_id),
                f"no dataset {dataset_id!r} is in the trash",
                "'labmesh data trash' lists it",
            )
            out.line(dataset_id)
            if out.json:
                out.record(asdict(record))

        return await on_each(datasets, out, restore_one)


def verify(
    *datasets: _Ids,
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
    options: ClientOptions = _OPTIONS,
) -> int:
    """Have the bank read datasets whole and compare them with their SHA-256. The exit code is 7
    when one of them is damaged.

    For example:

        labmesh data verify scan-42
        labmesh data verify --all --since 7d
    """
    if all_ == bool(datasets) or (which.given and not all_):
        raise ConfigError("name datasets, or give --all (and which)")
    return run(_verify(datasets, which, bank, options))


async def _verify(
    datasets: tuple[str, ...], which: SearchOptions, bank_id: str | None, options: ClientOptions
) -> int:
    out = options.out
    async with connected(options) as client:

        async def check(dataset_id: str) -> None:
            holder, _ = await find(client, dataset_id, bank_id)
            record = await holder.verify(dataset_id)
            out.line(f"{dataset_id}  as it was stored")
            if out.json:
                known = {"dataset_id": dataset_id, "sha256": record.sha256, "verified": True}
                out.record(known)

        if not datasets:
            banks = await banks_of(client, bank_id)
            chosen = [each async for _, each in found(banks, which.conditions())]
            datasets = tuple(dict.fromkeys(each.dataset_id for each in chosen))
            if not datasets:
                out.say("Nothing to verify.")
                return DONE
        return await on_each(datasets, out, check)


def tag(
    dataset: Annotated[str, Parameter(help="The dataset's id.")],
    /,
    *tags: Annotated[str, Parameter(help="Tags to add. 'keep' protects from retention rules.")],
    remove: Annotated[
        list[str] | None, Parameter(negative="", help="A tag to remove; again for more.")
    ] = None,
    bank: BankId = None,
    options: ClientOptions = _OPTIONS,
) -> int:
    """Add tags to a dataset, or remove them; prints those that it has now.

    For example:

        labmesh data tag scan-42 good keep
        labmesh data tag scan-42 --remove good
    """
    if not tags and not remove:
        raise ConfigError("give tags to add, or --remove TAG")
    return run(_tag(dataset, tags, remove or [], bank, options))


async def _tag(
    dataset_id: str,
    tags: tuple[str, ...],
    removed: list[str],
    bank_id: str | None,
    options: ClientOptions,
) -> int:
    async with connected(options) as client:
        holder, record = await find(client, dataset_id, bank_id)
        if removed:
            record = await holder.untag(dataset_id, *removed)
        if tags:
            record = await holder.tag(dataset_id, *tags)
    _tell(record, " ".join(record.tags), options)
    return DONE


def note(
    dataset: Annotated[str, Parameter(help="The dataset's id.")],
    text: Annotated[str, Parameter(help="What is to be remembered.")],
    /,
    *,
    bank: BankId = None,
    options: ClientOptions = _OPTIONS,
) -> int:
    """Add a note to a dataset's history.

    For example:

        labmesh data note scan-42 "the contact was loose from 14:00 on"
    """
    return run(_note(dataset, text, bank, options))


async def _note(dataset_id: str, text: str, bank_id: str | None, options: ClientOptions) -> int:
    async with connected(options) as client:
        holder, _ = await find(client, dataset_id, bank_id)
        record = await holder.note(dataset_id, text)
    _tell(record, record.dataset_id, options)
    options.out.say(f"noted; see: labmesh data history {dataset_id}")
    return DONE


def _tell(record: DatasetRecord, line: str, options: ClientOptions) -> None:
    options.out.line(line)
    if options.json:
        options.out.record(asdict(record))
