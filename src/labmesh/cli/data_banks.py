"""What the commands about datasets share: options, where a dataset is, tables of records."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Group, Parameter
from msgspec.structs import asdict

from labmesh.cli.outcomes import DONE, outcome_of
from labmesh.cli.output import Output, age, size
from labmesh.client import BankClient, DirectorClientAgent
from labmesh.errors import ConfigError, Damaged, LabmeshError, LinkLost, NotFound
from labmesh.protocol.messages import DatasetRecord

__all__ = [
    "FIND_S",
    "BankId",
    "SearchOptions",
    "banks_of",
    "find",
    "first_answer",
    "found",
    "from_whole",
    "holders",
    "named",
    "on_each",
    "print_records",
]

FIND_S = 1.0
_FILTER = Group("Which datasets", sort_key=50)
_OPERATOR = re.compile(r"[<>=~]")

BankId = Annotated[str | None, Parameter(help="The bank's id. Without it: any bank, all banks.")]


@Parameter(name="*", group=_FILTER)
@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Which datasets; every one that is given must hold."""

    name: Annotated[str | None, Parameter(help="Their name; * and ? stand for anything.")] = None
    kind: Annotated[str | None, Parameter(help="Their kind, such as npy or text.")] = None
    relay: Annotated[str | None, Parameter(help="The relay that they come from.")] = None
    tag: Annotated[
        list[str] | None, Parameter(negative="", help="A tag that they have; again for more.")
    ] = None
    parent: Annotated[str | None, Parameter(help="The dataset that they were made from.")] = None
    since: Annotated[
        str | None, Parameter(help="Stored since: 2h, 3d (ago), 2026-01-31, 2026-01-31T14:00.")
    ] = None
    until: Annotated[str | None, Parameter(help="Stored until, written as for --since.")] = None
    text: Annotated[
        str | None, Parameter(help="Words in their id, name, tags or metadata, in any case.")
    ] = None
    where: Annotated[
        list[str] | None,
        Parameter(negative="", help="A condition such as 'temperature<4'; again for more."),
    ] = None

    @property
    def given(self) -> bool:
        """Any of them was given."""
        return self != SearchOptions()

    def conditions(self, words: Sequence[str] = ()) -> dict[str, Any]:
        """The arguments of a search; of further words those with an operator are conditions."""
        texts = [self.text or "", *(each for each in words if not _OPERATOR.search(each))]
        fields = {
            "name": self.name,
            "kind": self.kind,
            "relay": self.relay,
            "parent": self.parent,
            "since": self.since,
            "until": self.until,
        }
        return {
            "text": " ".join(texts).strip(),
            "tags": self.tag or (),
            "where": [*(self.where or ()), *(each for each in words if _OPERATOR.search(each))],
            **{key: each for key, each in fields.items() if each is not None},
        }


async def banks_of(client: DirectorClientAgent, bank_id: str | None) -> list[BankClient]:
    """The bank of this id, or all; the first one is waited for a moment."""
    first = await client.get_databank_agent(bank_id, wait=FIND_S)
    if bank_id is not None:
        return [first]
    listed = await client.list_banks()
    return [await client.get_databank_agent(each["bank_id"], wait=0) for each in listed]


async def find(
    client: DirectorClientAgent, dataset_id: str, bank_id: str | None
) -> tuple[BankClient, DatasetRecord]:
    """The first bank that has this dataset.

    :raises NotFound: none of them has it.
    :raises LinkLost: those that answer do not have it.
    """
    return await first_answer(
        await banks_of(client, bank_id),
        lambda bank: bank.show(dataset_id),
        f"no dataset {dataset_id!r}",
        "'labmesh data ls' lists the newest",
    )


async def holders(
    client: DirectorClientAgent, dataset_id: str, bank_id: str | None
) -> AsyncIterator[tuple[BankClient, DatasetRecord]]:
    """The banks that have this dataset, each looked for once the one before it did not do.

    Behind the last one it raises as :func:`find` does.
    """
    banks = await banks_of(client, bank_id)
    while True:
        holder, record = await first_answer(
            banks,
            lambda bank: bank.show(dataset_id),
            f"no dataset {dataset_id!r}",
            "'labmesh data ls' lists the newest",
        )
        yield holder, record
        banks = banks[banks.index(holder) + 1 :]


async def from_whole(
    places: AsyncIterator[tuple[BankClient, DatasetRecord]],
    fetch: Callable[[BankClient, DatasetRecord], Awaitable[None]],
    out: Output,
) -> None:
    """Fetch a dataset from the first of these banks that has it whole.

    :raises Damaged: none has, and this is what the first one said.
    """
    damaged: Damaged | None = None
    sha256 = ""
    try:
        async for bank, record in places:
            if damaged is not None and record.sha256 != sha256:
                continue  # another dataset that has the same id
            try:
                await fetch(bank, record)
            except Damaged as exc:
                out.trouble(f"{record.dataset_id} is damaged in {bank.bank_id}")
                damaged, sha256 = damaged or exc, record.sha256
            else:
                return
    except (NotFound, LinkLost):
        if damaged is None:
            raise
    if damaged is not None:
        raise damaged


async def first_answer(
    banks: Sequence[BankClient],
    ask: Callable[[BankClient], Awaitable[DatasetRecord]],
    what: str,
    advice: str,
) -> tuple[BankClient, DatasetRecord]:
    """The first bank that does not say that it does not have it."""
    unreachable: LinkLost | None = None
    for bank in banks:
        try:
            return bank, await ask(bank)
        except NotFound:
            continue
        except LinkLost as exc:
            unreachable = exc
    if unreachable is not None:
        raise unreachable
    raise NotFound(f"{what} in {', '.join(each.bank_id for each in banks)}; {advice}")


async def found(
    banks: Sequence[BankClient], conditions: dict[str, Any]
) -> AsyncIterator[tuple[BankClient, DatasetRecord]]:
    """Every dataset of these banks that meets the conditions, fetched a page at a time."""
    for bank in banks:
        async for record in bank.each(**conditions):
            yield bank, record


def named(datasets: Sequence[str]) -> None:
    """:raises ConfigError: there is none."""
    if not datasets:
        raise ConfigError("name at least one dataset; 'labmesh data ls' lists the newest")


async def on_each(
    datasets: Sequence[str], out: Output, act: Callable[[str], Awaitable[None]]
) -> int:
    """Do something with each dataset; the exit code of the first that failed, after all.

    A single one that fails ends the command as any error does.
    """
    if len(datasets) == 1:
        await act(datasets[0])
        return DONE
    exit_code = DONE
    for each in datasets:
        try:
            await act(each)
        except LinkLost:
            raise
        except LabmeshError as exc:
            out.trouble(f"{each}: {exc}")
            exit_code = exit_code or outcome_of(exc).exit_code
    return exit_code


def print_records(records: Sequence[DatasetRecord], out: Output) -> None:
    """As a table; with ``--json`` one a line."""
    if out.json:
        for record in records:
            out.record(asdict(record))
        return
    now = time.time()
    out.table(
        ("ID", "NAME", "SIZE", "KIND", "AGE", "RELAY", "BANK", "TAGS"),
        [
            (
                each.dataset_id,
                each.name,
                size(each.size),
                each.kind,
                age(now - each.created),
                each.relay_id,
                each.bank_id,
                " ".join(each.tags),
            )
            for each in records
        ],
    )
