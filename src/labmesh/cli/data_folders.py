"""Commands between banks and plain folders: ``data export`` and ``data import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from labmesh.cli.data_banks import FIND_S, BankId, SearchOptions, banks_of, found
from labmesh.cli.options import ClientOptions
from labmesh.cli.outcomes import DONE, outcome_of
from labmesh.cli.output import Output, size
from labmesh.cli.running import connected, run
from labmesh.datasets.export import FolderReport

__all__ = ["export", "import_"]

_OPTIONS = ClientOptions()
_ALL = SearchOptions()


def export(
    folder: Annotated[Path, Parameter(help="Where they go; it is made when it is missing.")],
    /,
    *datasets: Annotated[str, Parameter(help="Ids; without them all, or those of the options.")],
    which: SearchOptions = _ALL,
    bank: BankId = None,
    options: ClientOptions = _OPTIONS,
) -> int:
    """Write datasets with their records into a plain folder, which is readable without labmesh.

    Each is in a folder of its id: its file, and record.json. 'sha256sum -c SHA256SUMS' checks all.
    An export that broke off goes on where it was.

    For example:

        labmesh data export backup
        labmesh data export for-anna --where sample=A1 --since 7d
        labmesh data export for-anna scan-42 scan-43
    """
    return run(_export(folder, datasets, which, bank, options))


async def _export(
    folder: Path,
    datasets: tuple[str, ...],
    which: SearchOptions,
    bank_id: str | None,
    options: ClientOptions,
) -> int:
    out = options.out
    total = FolderReport()
    async with connected(options) as client:
        banks = await banks_of(client, bank_id)
        left = dict.fromkeys(datasets)
        for bank in banks:
            if datasets:
                ids = [each for each in left if await bank.has(each)]
                for each in ids:
                    del left[each]
            else:
                chosen = found([bank], which.conditions())
                ids = [record.dataset_id async for _, record in chosen]
            _add(total, await bank.export(folder, ids, step=_Steps(out)))
        for each in left:
            # The error of the bank that was asked first says what there is to try.
            _add(total, await banks[0].export(folder, [each], step=_Steps(out)))
    return _tell("exported", total, out)


def import_(
    folder: Annotated[Path, Parameter(help="What 'export' wrote, or any folder of files.")],
    /,
    *,
    dry_run: Annotated[
        bool, Parameter(negative="", show_default=False, help="Only tell what would be done.")
    ] = False,
    bank: BankId = None,
    options: ClientOptions = _OPTIONS,
) -> int:
    """Store the datasets of a folder.

    Exported ones keep id, name, kind, metadata, tags and parents. Other files have their path as
    their name and the kind of their suffix (.npy, .nc, .parquet, .txt, .json); the same content is
    stored once. What the bank has already is left as it is.

    For example:

        labmesh data import backup
        labmesh data import old-results --dry-run
    """
    return run(_import(folder, dry_run, bank, options))


async def _import(folder: Path, dry_run: bool, bank_id: str | None, options: ClientOptions) -> int:
    out = options.out
    async with connected(options) as client:
        bank = await client.get_databank_agent(bank_id, wait=FIND_S)
        report = await bank.import_folder(folder, dry_run=dry_run, step=_Steps(out))
    for each in report.skipped:
        out.say(f"left out: {each}")
    return _tell("would be imported" if dry_run else "imported", report, out)


class _Steps:
    """Prints what becomes of each dataset."""

    def __init__(self, out: Output) -> None:
        self._out = out

    def __call__(self, what: str, became: str) -> None:
        if became.startswith("failed: "):
            self._out.trouble(f"{what}: {became.removeprefix('failed: ')}")
        else:
            self._out.line(f"{what}  {became}")
        if self._out.json:
            self._out.record({"dataset": what, "became": became})


def _add(total: FolderReport, part: FolderReport) -> None:
    total.done += part.done
    total.already += part.already
    total.bytes += part.bytes
    total.failed |= part.failed
    total.skipped += part.skipped


def _tell(what: str, report: FolderReport, out: Output) -> int:
    """The counts; the exit code is that of the first that failed."""
    out.say(
        f"{report.done} {what} ({size(report.bytes)}), {report.already} already there, "
        f"{len(report.failed)} failed"
    )
    return next((outcome_of(each).exit_code for each in report.failed.values()), DONE)
