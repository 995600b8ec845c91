"""Datasets as users have them: put, found, sliced, annotated, deleted, exported and imported."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from tests.support.served import ServedMesh

from labmesh.blocking.bank import Bank
from labmesh.cli import main
from labmesh.content.sinks import KEPT_BYTES, part_path
from labmesh.errors import (
    ChecksumMismatch,
    Conflict,
    Damaged,
    NotFound,
    ProtocolError,
    TooLarge,
)
from labmesh.instruments.simulated import PowerSupply
from labmesh.protocol.messages import Fetched
from labmesh.testing import LocalMesh


@pytest.fixture(scope="module", autouse=True)
def _what_pyarrow_keeps() -> None:
    """Its pools of threads, which begin with the first table and end with the process."""
    file = io.BytesIO()
    pd.DataFrame({"a": [1.0]}, index=pd.Index([1], name="n")).to_parquet(file)
    pd.read_parquet(file)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ServedMesh]:
    drivers: dict[str, object] = {"Inst-0": PowerSupply(noise=0.0, seed=1)}
    folder = tmp_path / "banks"
    with ServedMesh(drivers, banks=2, in_memory=False, data_dir=folder) as mesh:
        yield mesh


@pytest.fixture
def bank(served: ServedMesh) -> Bank:
    return served.connect().bank("bank-0")


# ── values ──────────────────────────────────────────────────────────────────────────────────────


def test_what_is_put_is_read_as_what_it_was(bank: Bank, tmp_path: Path) -> None:
    frame = pd.DataFrame({"v": [1.0, 2.0]}, index=pd.Index([3, 4], name="n"))
    grid = xr.Dataset({"s": (("x",), [1 + 2j, 3])}, {"x": [0.5, 1.5]}, {"sample": "A1"})
    np.save(tmp_path / "scan.npy", np.arange(3))
    (tmp_path / "notes.txt").write_text("µ")
    cases: list[tuple[Any, str, str]] = [
        (np.arange(24.0).reshape(2, 3, 4)[:, ::2], "npy", ""),
        (grid, "netcdf", ""),
        (grid["s"], "netcdf-array", ""),
        (frame, "parquet", ""),
        (frame["v"], "parquet-series", ""),
        ("text, µ", "text", ""),
        ({"a": [1, None]}, "json", ""),
        (b"bytes", "bytes", ""),
        (tmp_path / "scan.npy", "npy", "scan.npy"),
        (tmp_path / "notes.txt", "text", "notes.txt"),
    ]
    for value, kind, name in cases:
        record = bank.put(value)
        assert (record.kind, record.name) == (kind, name)
        back = bank.read(record.dataset_id)
        if isinstance(value, Path):
            back_again = bank.put(back)
            assert back_again.kind == kind
            continue
        assert type(back) is type(value)
        assert pickled(back) == pickled(value)
    unknown = bank.put(b"?", kind="of my program")
    assert (unknown.kind, unknown.read()) == ("of my program", b"?")


def pickled(value: Any) -> Any:
    """Something that compares by content."""
    if isinstance(value, np.ndarray):
        return value.dtype, value.tolist()
    return value.to_dict() if hasattr(value, "to_dict") else value


def test_a_large_table_or_grid_is_read_by_way_of_a_file_that_goes(
    bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labmesh.asking.bank_client._LARGE_BYTES", 0)
    grid = xr.Dataset({"s": (("x",), [1.0, 3.0])}, {"x": [0.5, 1.5]})
    records = [bank.put(each) for each in (grid, grid["s"], grid.to_dataframe())]
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    assert records[0].read().identical(grid)
    assert records[1].read().identical(grid["s"])
    assert records[2].read().equals(grid.to_dataframe())
    assert os.listdir(tmp_path / "temporary") == []


def test_what_cannot_be_put_is_said(bank: Bank) -> None:
    with pytest.raises(TypeError, match=r"meta is a dict of what is worth knowing.*not a list"):
        bank.put(b"", meta=[1])  # type: ignore[arg-type]
    with pytest.raises(TooLarge, match=r"meta takes .* over the limit"):
        bank.put(b"", meta={"log": "x" * 1_000_000})
    with pytest.raises(TypeError, match="a tag is text, not int"):
        bank.put(b"", tags=[1])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="1 to 64 characters"):
        bank.put(b"", tags="")
    with pytest.raises(TypeError, match="named by its id or record, not by int"):
        bank.put(b"", parents=[3])
    with pytest.raises(ValueError, match="kind= is for bytes"):
        bank.put("text", kind="json")
    with pytest.raises(TypeError, match="cannot upload type"):
        bank.put(object, meta={})
    assert bank.list() == []
    assert bank.put(b"", meta={"T": np.float64(4.2)}).meta == {"T": 4.2}


async def test_a_slice_moves_only_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.arange(4_000_000).reshape(4000, 1000)
    travelled = 0
    async with LocalMesh(in_memory=True) as mesh:
        client = await mesh.client()
        bank = await client.get_databank_agent()
        record = await bank.put(array, "big")
        request = client.request

        async def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal travelled
            reply, body = await request(*arguments, **options)
            travelled += len(body) if isinstance(reply, Fetched) and body is not None else 0
            return reply, body

        monkeypatch.setattr(client, "request", counted)
        stored = await bank.array(record.dataset_id)
        np.testing.assert_array_equal(await stored[1000:1010], array[1000:1010])
        assert travelled <= 10 * 8000 + 4096
        with pytest.raises(ValueError, match=r"not a \.npy file"):
            await bank.array((await bank.put(b"no array at all")).dataset_id)


async def test_a_slice_waits_for_a_bank_that_is_restarted() -> None:
    array = np.arange(3_000_000)
    async with LocalMesh() as mesh:
        client = await mesh.client()
        bank = await client.get_databank_agent()
        record = await bank.put(array, "big")
        stored = await bank.array(record.dataset_id)
        await mesh.banks["bank-0"].stop()
        work = asyncio.gather(
            asyncio.ensure_future(stored.read(np.s_[1000:1010])),
            asyncio.ensure_future(stored.read(np.s_[::-1000])),
        )
        await mesh.start_bank("bank-0")
        few, many = await work
        np.testing.assert_array_equal(few, array[1000:1010])
        np.testing.assert_array_equal(many, array[::-1000])


def test_an_array_is_sliced_like_one(bank: Bank) -> None:
    array = np.asfortranarray(np.arange(60).reshape(3, 4, 5))
    stored = bank.put(array).array()
    assert (stored.shape, stored.ndim, stored.size, len(stored)) == ((3, 4, 5), 3, 60, 3)
    assert (stored.dtype, stored.nbytes) == (array.dtype, array.nbytes)
    np.testing.assert_array_equal(stored[1, ::-1, 2:], array[1, ::-1, 2:])
    assert stored[2, 3, 4] == 59
    np.testing.assert_array_equal(np.asarray(stored, dtype=float), array.astype(float))
    assert [each.sum() for each in stored] == [each.sum() for each in array]
    with pytest.raises(ValueError, match="always a copy"):
        np.array(stored, copy=False)
    assert "shape=(3, 4, 5)" in repr(stored)


# ── search ──────────────────────────────────────────────────────────────────────────────────────


def test_datasets_are_found_by_what_is_known_of_them(bank: Bank) -> None:
    for number in range(6):
        meta = {"sample": "A1" if number % 2 else "B2", "temperature": number * 1.5}
        bank.put(
            b"x" * number,
            f"scan-{number}",
            meta={**meta, "a": {"b": number}},
            tags=["good"] if number > 3 else (),
            dataset_id=f"set-{number}",
        )

    def found(*text: str, **conditions: Any) -> str:
        ids = [each.dataset_id[-1] for each in bank.search(*text, **conditions)]
        assert ids == [each.dataset_id[-1] for each in bank.each(*text, **conditions)]
        return "".join(ids)

    assert found() == "543210"
    assert found(newest_first=False) == "012345"
    assert found(sample="A1") == "531"
    assert found(sample="A1", temperature__lt=4) == "1"
    assert found(where=["a.b>3"]) == found(a__b__gt=3) == "54"
    assert found(where="a.b>3", tags="good", sample="B2") == "4"
    assert found(name="scan-[", since="2h") == ""
    assert found(name="*-3") == "3"
    assert found(kind="bytes", sort="-size") == "543210"
    assert found(sort="name") == "012345"
    assert found("B2 scan") == "420"
    now = datetime.now(UTC)
    assert found(since=timedelta(hours=1), until=now + timedelta(hours=1)) == "543210"
    assert found(until="1h") == found(since=now + timedelta(hours=1)) == ""
    assert [each.dataset_id for each in bank.search(limit=2)] == ["set-5", "set-4"]
    for wrong, text in (
        ({"sort": "sise"}, "did you mean 'size'"),
        ({"since": "soon"}, "is no time"),
        ({"where": ["sample"]}, "is no condition"),
        ({"limit": 0}, "at least 1"),
    ):
        with pytest.raises(ValueError, match=text):
            bank.search(**wrong)
    assert "scan-5" in repr(bank.search())
    assert "<td" in bank.search()._repr_html_()
    assert repr(bank.search(sample="C3")) == "(nothing)"


# ── what is known, and its changes ──────────────────────────────────────────────────────────────


def test_tags_notes_children_and_the_trash(bank: Bank) -> None:
    raw = bank.put(b"raw", "raw", dataset_id="raw")
    fit = bank.put(b"fit", "fit", parents=raw)
    assert fit.parents == ["raw"]
    assert raw.children == bank.children("raw") == [fit]
    assert raw.tag("good", "keep").tags == ["good", "keep"]
    assert raw.untag("good").tags == ["keep"]
    raw.note("the contact was loose")
    assert [(each.add_tags, each.remove_tags, each.note) for each in raw.history] == [
        (["good", "keep"], [], ""),
        ([], ["good"], ""),
        ([], [], "the contact was loose"),
    ]
    assert all("@" in each.who and "pid" not in each.who for each in raw.history)
    assert "loose" in repr(raw.history)
    with pytest.raises(TooLarge, match="a dataset of its own"):
        raw.note("µ" * 5001)
    assert "+good" in raw.history._repr_html_()

    fit.delete(why="wrong model")
    with pytest.raises(NotFound):
        bank.get(fit.dataset_id)
    (entry,) = bank.trash()
    assert (entry.record.dataset_id, entry.why) == (fit.dataset_id, "wrong model")
    assert "wrong model" in repr(bank.trash())
    assert "wrong model" in bank.trash()._repr_html_()
    assert bank.restore(fit.dataset_id).read() == b"fit"
    assert bank.trash() == []
    with pytest.raises(NotFound):
        bank.restore("raw")


def test_with_which_settings_was_this_taken(served: ServedMesh) -> None:
    mesh = served.connect()
    psu = mesh["Inst-0"]
    psu.set_voltage(2.5)
    for reading in psu.watch(timeout=10):
        if reading.value["set_voltage"] == 2.5:
            break
    provenance = mesh.put(b"x", "scan-42").provenance
    assert provenance["program"] == sys.argv[0]
    assert provenance["states_at_start"]["Inst-0"]["value"]["set_voltage"] == 2.5
    printed = repr(provenance)
    assert "settings at its start:" in printed
    assert re.search(r"Inst-0 +set_voltage +2\.5", printed)
    assert "Inst-0" in provenance._repr_html_()
    assert len(provenance) == len(list(provenance))


def damage(folder: Path, bank_id: str, sha256: str) -> None:
    path = folder / "banks" / bank_id / "objects" / sha256[:2] / sha256
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_damage_is_found_and_does_not_stop_an_export(bank: Bank, tmp_path: Path) -> None:
    bad, good = bank.put(os.urandom(1000), "bad"), bank.put(b"good", "good")
    assert bank.verify(good.dataset_id) == good
    damage(tmp_path, "bank-0", bad.sha256)
    with pytest.raises(Damaged):
        bad.verify()
    report = bank.export(tmp_path / "out")
    assert (report.done, report.already) == (1, 0)
    assert list(report.failed) == [bad.dataset_id]
    assert sorted(each.name for each in (tmp_path / "out" / good.dataset_id).iterdir()) == [
        "good",
        "record.json",
    ]


def test_the_trash_is_emptied_early_and_gives_its_room_back(
    served: ServedMesh, bank: Bank, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [bank.put(f"{n}", dataset_id=f"scan-{n}") for n in range(4)]
    twin = bank.put("0", dataset_id="twin")
    for each in records:
        each.delete()
    with pytest.raises(NotFound, match="'twin' is not in the trash"):
        bank.empty_trash(["twin"])
    assert bank.empty_trash("scan-0") == ["scan-0"]
    assert twin.read() == "0"
    with pytest.raises(NotFound):
        bank.restore("scan-0")
    # Its id is free again.
    assert bank.put("other", dataset_id="scan-0").read() == "other"

    where = ["data", "trash", "--broker", served.local.address]
    assert main([*where, "--empty", "scan-1", "scan-9"]) == 3
    assert main([*where, "scan-1"]) == 2
    assert len(bank.trash()) == 3
    capsys.readouterr()
    assert main([*where, "--empty", "scan-1"]) == 0
    assert capsys.readouterr().out.split() == ["scan-1"]
    assert main([*where, "--empty"]) == 0
    assert bank.trash() == []
    assert sorted(each.dataset_id for each in bank) == ["scan-0", "twin"]


def test_a_record_knows_what_its_own_methods_changed(bank: Bank) -> None:
    raw = bank.put(b"1", tags="raw")
    assert raw.tag("good").tags == raw.tags == ["raw", "good"]
    raw.untag("raw")
    raw.note("looked at")
    assert raw.tags == ["good"]


def test_an_import_mends_what_is_damaged(
    served: ServedMesh, bank: Bank, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, content = tmp_path / "out", os.urandom(3_000_000)
    one = bank.put(content, "one", meta={"n": 1}, dataset_id="one")
    bank.export(folder)
    other = served.connect().bank("bank-1")
    other.import_folder(folder)
    damage(tmp_path, "bank-0", one.sha256)

    # The other bank has it whole, and is asked by the command.
    where = ["data", "get", "--broker", served.local.address, "one"]
    for extra in (["one.bin"], ["many.bin"]):
        target = tmp_path / extra[0]
        assert main([*where, str(target)]) == 0, capsys.readouterr().err
        assert target.read_bytes() == content
    assert "one is damaged in bank-0" in capsys.readouterr().err
    assert main([*where, str(tmp_path / "no.bin"), "--bank", "bank-0"]) == 7

    seen: dict[str, str] = {}
    report = bank.import_folder(folder, dry_run=True, step=seen.__setitem__)
    assert (report.done, report.already) == (1, 0)
    assert seen == {"one": "damaged in the bank; would be mended"}
    report = bank.import_folder(folder, step=seen.__setitem__)
    assert (report.done, report.already, seen["one"]) == (1, 0, "was damaged in the bank; mended")
    assert bank.read("one") == content
    bank.verify("one")
    assert bank["one"].sequence == one.sequence
    assert bank.import_folder(folder).already == 1


# ── folders ─────────────────────────────────────────────────────────────────────────────────────


def sums_hold(folder: Path) -> bool:
    command = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    return subprocess.run(command, cwd=folder, check=False).returncode == 0


def test_an_export_is_imported_elsewhere_as_it_was(
    served: ServedMesh, bank: Bank, tmp_path: Path
) -> None:
    folder, steps = tmp_path / "out", []
    raw = bank.put(np.arange(5), "sub/scan µ", meta={"nan": float("nan"), "t": 4.2}, tags="good")
    fit = bank.put({"slope": 1}, "fit", parents=raw, dataset_id="SHA256SUMS")
    raw.note("by hand")
    report = bank.export(folder, step=lambda *step: steps.append(step))
    assert (report.done, report.already, report.bytes) == (2, 0, raw.size + fit.size)
    assert steps == [("SHA256SUMS", "exported"), (raw.dataset_id, "exported")]
    np.testing.assert_array_equal(np.load(folder / raw.dataset_id / "scan µ.npy"), np.arange(5))
    known = json.loads((folder / "SHA256SUMS_" / "record.json").read_text())
    assert (known["name"], known["parents"]) == ("fit", [raw.dataset_id])
    assert "databank bank-0" in (folder / "README.txt").read_text()
    assert sums_hold(folder)

    # What is there is not fetched again; what was spoiled is; what was noted since is written.
    (folder / raw.dataset_id / "scan µ.npy").write_bytes(b"spoiled")
    raw.tag("later")
    report = bank.export(folder, raw)
    assert (report.done, report.already) == (1, 0)
    assert bank.export(folder, [raw, "SHA256SUMS"]).already == 2
    assert sums_hold(folder)

    other = served.connect().bank("bank-1")
    report = other.import_folder(folder, dry_run=True)
    assert (report.done, other.list()) == (2, [])
    assert other.import_folder(folder).done == 2
    twin = other.get(raw.dataset_id)
    assert (twin.name, twin.kind, twin.tags, twin.sha256) == (
        raw.name,
        "npy",
        ["good", "later"],
        raw.sha256,
    )
    assert twin.meta["t"] == 4.2
    assert twin.meta["nan"] != twin.meta["nan"]
    assert other.get("SHA256SUMS").parents == [raw.dataset_id]
    imported = twin.provenance["imported"]
    assert imported["bank_id"] == "bank-0"
    assert imported["created"] == pytest.approx(raw.created.timestamp(), abs=1e-3)
    assert imported["provenance"]["program"] == sys.argv[0]
    notes = [each.note for each in twin.history]
    assert len(notes) == 2
    assert notes[0].endswith("] by hand")
    assert notes[1].endswith("] +later")
    again = other.import_folder(folder)
    assert (again.done, again.already, again.failed) == (0, 2, {})
    assert [each.note for each in twin.history] == notes
    assert bank.import_folder(folder).already == 2
    assert len(raw.history) == 2


def test_a_folder_of_files_is_imported_once(bank: Bank, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    (folder / "2025").mkdir(parents=True)
    np.save(folder / "2025" / "scan.npy", np.arange(3))
    (folder / "notes.txt").write_text("µ")
    (folder / "twin.txt").write_text("µ")
    (folder / "table.csv").write_text("1,2\n")
    (folder / ".hidden").write_text("")
    (folder / "link").symlink_to("/etc/passwd")
    report = bank.import_folder(folder)
    assert (report.done, report.already, sorted(report.skipped)) == (3, 1, [".hidden", "link"])
    by_name = {each.name: each for each in bank}
    assert {name: each.kind for name, each in by_name.items()} == {
        "2025/scan.npy": "npy",
        "notes.txt": "text",
        "table.csv": "bytes",
    }
    np.testing.assert_array_equal(by_name["2025/scan.npy"].read(), np.arange(3))
    assert by_name["notes.txt"].provenance["imported"]["file"] == "notes.txt"
    assert bank.import_folder(folder).already == 4
    with pytest.raises(FileNotFoundError):
        bank.import_folder(tmp_path / "missing")


def test_no_name_of_a_dataset_leaves_the_folder(bank: Bank, tmp_path: Path) -> None:
    names = ["../../evil", "/etc/passwd", "C:\\evil", "record.json", "..", "a\nb", ".ssh", "con"]
    for name in names:
        bank.put(b"evil", name)
    before = sorted(tmp_path.iterdir())
    assert bank.export(tmp_path / "out").done == len(names)
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "out"])
    assert sums_hold(tmp_path / "out")
    files = [each for each in (tmp_path / "out").rglob("*") if each.is_file()]
    assert len(files) == 2 * len(names) + 2


def test_an_export_that_was_changed_is_not_imported(
    served: ServedMesh, bank: Bank, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    for name in ("content", "path", "record", "link", "format", "taken"):
        bank.put(name.encode(), name, dataset_id=name)
    assert bank.export(folder).done == 6
    (folder / "content" / "content").write_bytes(b"changed")
    for name, old, new in (
        ("path", '"file": "path"', '"file": "../record/record"'),
        ("record", '"size": 6', '"size": "six"'),
        ("format", "labmesh-export-1", "labmesh-export-2"),
    ):
        record = folder / name / "record.json"
        record.write_text(record.read_text().replace(old, new))
    (folder / "link" / "link").unlink()
    (folder / "link" / "link").symlink_to("/etc/passwd")
    other = served.connect().bank("bank-1")
    other.put(b"other", dataset_id="taken")
    report = other.import_folder(folder)
    assert report.done == 0
    assert {name: type(error) for name, error in report.failed.items()} == {
        "content": ChecksumMismatch,
        "path": ProtocolError,
        "record": ProtocolError,
        "link": NotFound,
        "taken": Conflict,
        "format": ProtocolError,
    }


# ── downloads ───────────────────────────────────────────────────────────────────────────────────

KILLED = """
import os, sys, labmesh
address, dataset_id, path, limit = sys.argv[1:]
bank = labmesh.connect(address).bank("bank-0")
bank.download(dataset_id, path, progress=lambda done, _: done < int(limit) or os._exit(9))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is continued there")
def test_a_download_that_was_killed_goes_on_where_it_was(
    served: ServedMesh, bank: Bank, tmp_path: Path
) -> None:
    content = os.urandom(3 * KEPT_BYTES)
    record = bank.put(content, "big")
    path = tmp_path / "big.bin"
    half = len(content) // 2
    arguments = [served.local.address, record.dataset_id, str(path), str(half)]
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), *arguments], check=False, timeout=30
    )
    assert ended.returncode == 9
    assert not path.exists()
    part = part_path(path, record.sha256)
    assert part is not None
    left = part.stat().st_size
    assert left >= half
    steps: list[int] = []
    record.save(path, progress=lambda done, _: steps.append(done))
    assert steps[0] == left
    assert path.read_bytes() == content
    assert not part.exists()

    # Half a file of zeros, as a power cut leaves it, is noticed at the end, and fetched anew.
    part.write_bytes(bytes(left))
    path.unlink()
    assert record.save(path).read_bytes() == content
    assert not part.exists()
