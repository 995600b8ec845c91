"""A bank on real file systems whose power is cut has what it acknowledged.

The figures (FD3), 200 cuts of each file system, about ten minutes::

    python -m pytest -m soak -s --timeout 3600 tests/faults/test_bank_disks.py
"""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path

import pytest
from tests.support.bank_process import BankProcess, Uploads, read_folder, seeded
from tests.support.disks import LosesPower
from tests.support.peers import until

LIMIT_S = 60.0
SIZES = (0, 1_000, 20_000, 200_000, 1_500_000)
#: What is uploaded meanwhile must find room on a small disk.
_CUTS_A_FOLDER = 6


async def test_2_power_cuts_and_what_they_do_without_syncs(tmp_path: Path) -> None:
    with LosesPower(tmp_path) as disk:
        assert (await _cuts(disk, 2, seed=3))["lost"] == 0
        assert (await _cuts(disk, 1, seed=3, without=["fsync", "fsync_dir"]))["lost"] > 0


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("kind", "options"), [("ext4", ""), ("ext4", "data=writeback"), ("xfs", "")]
)
async def test_200_power_cuts(kind: str, options: str, tmp_path: Path) -> None:
    with LosesPower(tmp_path, kind, options) as disk:
        await _cuts(disk, 200, seed=4)
        for without in (["fsync"], ["fsync_dir"], ["fsync", "fsync_dir"]):
            await _cuts(disk, 10, seed=4, without=without)


async def _cuts(
    disk: LosesPower, cuts: int, *, seed: int, without: list[str] | None = None
) -> dict[str, int]:
    """FD3: upload all the time, cut the power at random moments, compare."""
    chance = random.Random(seed)
    figures = {"checked": 0, "lost": 0, "corrupt": 0}
    done = 0
    while done < cuts:
        with BankProcess(
            disk.root / "bank", {"without": without or []}, cwd=disk.root.parent
        ) as bank:
            await asyncio.to_thread(bank.start)
            uploads = Uploads(bank.ingest)
            tasks = [asyncio.create_task(_upload_on(uploads, each, seed)) for each in range(4)]
            try:
                for _ in range(min(cuts - done, _CUTS_A_FOLDER)):
                    before = len(uploads.acknowledged)
                    await asyncio.sleep(chance.uniform(0.05, 0.3))  # when the fault happens
                    await until(lambda: len(uploads.acknowledged) >= before + 2, LIMIT_S)  # noqa: B023
                    acknowledged = list(uploads.acknowledged)
                    clone = await asyncio.to_thread(disk.cut)
                    found = await asyncio.to_thread(_after, disk, clone)
                    figures["checked"] += len(acknowledged)
                    figures["lost"] += sum(each not in found for each in acknowledged)
                    figures["corrupt"] += sum(
                        uploads.sent.get(each) != sha for each, sha in found.items()
                    )
                    done += 1
            finally:
                for each in tasks:
                    each.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        shutil.rmtree(disk.root / "bank")
    print(
        f"FD3: {cuts} power cuts{f' without {without}' if without else ''}, seed {seed} / lost "
        f"{figures['lost']}, corrupt {figures['corrupt']} / {figures['checked']} checked"
    )
    if not without:
        assert (figures["lost"], figures["corrupt"]) == (0, 0)
    return figures


def _after(disk: LosesPower, clone: Path) -> dict[str, str]:
    with disk.after(clone) as root:
        return read_folder(root / "bank")


async def _upload_on(uploads: Uploads, number: int, seed: int) -> None:
    chance = random.Random(seed * 100 + number)
    for count in range(1_000_000):
        content = seeded(chance.choice(SIZES), number * 1_000_000 + count)
        await uploads.one(f"upload-{number}-{count}", content)
