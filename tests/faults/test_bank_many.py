"""Many who want the same of a bank at once, and a reader that is killed (FD15, FD16, FC6)."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from tests.support.bank_process import BankProcess, Uploads, read_folder, seeded
from tests.support.processes import Process, program

from labmesh.errors import Conflict

LIMIT_S = 20.0


async def test_20_senders_of_one_id(tmp_path: Path) -> None:
    with BankProcess(tmp_path / "bank") as bank:
        await asyncio.to_thread(bank.start)
        uploads = Uploads(bank.ingest)
        contents = [seeded(200_000, number % 4) for number in range(20)]
        ends: Counter[str] = Counter()

        async def send(content: bytes) -> None:
            try:
                await uploads.one("same", content)
                ends["stored"] += 1
            except Conflict:
                ends["conflict"] += 1

        await asyncio.gather(*map(send, contents))
        bank.kill9()
    found = read_folder(tmp_path / "bank")
    print(f"FD15: 20 senders / winners {len(found)} / {dict(ends)}")
    assert len(found) == 1
    assert found["same"] in {Uploads.digest(each) for each in contents}
    assert ends["stored"] >= 1
    assert sum(ends.values()) == 20


async def test_a_second_bank_in_a_folder_refuses(tmp_path: Path) -> None:
    with BankProcess(tmp_path / "bank") as first:
        await asyncio.to_thread(first.start)
        second = BankProcess(tmp_path / "bank")
        with Process(second.command(), cwd=tmp_path) as refused:
            code = await asyncio.to_thread(refused.wait_end, LIMIT_S)
            assert "is in use by another bank" in refused.errors
        assert first.process.exit_code is None
    print(f"FD16: 2 banks in one folder / started 1 / exit code {code}")
    assert code != 0


async def test_a_reader_that_is_killed_leaves_no_file_of_that_name(tmp_path: Path) -> None:
    content = seeded(60_000_000, 6)
    target = tmp_path / "downloaded"
    wrong = whole = 0
    with BankProcess(tmp_path / "bank") as bank:
        await asyncio.to_thread(bank.start)
        await Uploads(bank.ingest).one("much", content)
        for delay_s in (0.3, 0.35, 0.4, 0.5, None):
            arguments = [program("readers.py"), bank.retrieve, "much", "1", str(target)]
            with Process(arguments, cwd=tmp_path) as reader:
                if delay_s is None:
                    assert await asyncio.to_thread(reader.wait_end, LIMIT_S) == 0, reader.tail()
                else:
                    await asyncio.sleep(delay_s)  # the moment of the kill is the fault
                    reader.kill9()
            if await asyncio.to_thread(target.exists):
                whole += 1
                wrong += await asyncio.to_thread(target.read_bytes) != content
    print(f"FC6: 4 kills of a reader / wrong files {wrong} / {whole} whole")
    assert (wrong, whole >= 1) == (0, True)
