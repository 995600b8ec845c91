"""An export from a bank that lies or breaks."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from labmesh.datasets.export import export_datasets
from labmesh.errors import LinkLost, NoSpace, NotFound, ProtocolError
from labmesh.protocol.messages import Annotation, DatasetId, DatasetRecord


class HostileBank:
    """Says what it is told to say."""

    bank_id = "bank-0"

    def __init__(self, **records: dict[str, Any]) -> None:
        self.records = records
        self.asked: list[str] = []

    async def show(self, dataset_id: str, *, full: bool = False) -> DatasetRecord:
        assert full
        self.asked.append(dataset_id)
        if dataset_id == "broken":
            raise LinkLost("the bank is gone")
        if dataset_id not in self.records:
            raise NotFound(f"no dataset {dataset_id}")
        facts = {"size": 1, "sha256": hashlib.sha256(b"x").hexdigest(), "bank_id": "bank-0"}
        return DatasetRecord(
            **{"dataset_id": DatasetId(dataset_id), **facts, **self.records[dataset_id]}
        )

    async def history(self, dataset_id: str) -> list[Annotation]:
        return [Annotation(time=0.0, note="\x1b[2J")]

    async def download(self, dataset_id: str, dest: Path) -> Mapping[str, Any]:
        _write(dest)
        return {}


def _write(path: Path) -> None:
    path.write_bytes(b"x")


def files(folder: Path) -> dict[str, bytes]:
    return {
        each.relative_to(folder).as_posix(): each.read_bytes()
        for each in folder.rglob("*")
        if each.is_file()
    }


async def several(*ids: str) -> AsyncIterator[str]:
    for each in ids:
        yield each


async def test_ids_and_sizes_that_cannot_be_harm_nothing_else(tmp_path: Path) -> None:
    bank = HostileBank(good={"name": "a"}, vast={"size": 2**60})
    listed = several("../../evil", "/etc", "good", "vast", "gone", "a\nb")
    report = await export_datasets(bank, tmp_path / "out", listed)
    assert {name: type(error) for name, error in report.failed.items()} == {
        "../../evil": ProtocolError,
        "/etc": ProtocolError,
        "a\nb": ProtocolError,
        "vast": NoSpace,
        "gone": NotFound,
    }
    assert (report.done, bank.asked) == (1, ["good", "vast", "gone"])
    written = files(tmp_path)
    assert sorted(written) == [
        "out/README.txt",
        "out/SHA256SUMS",
        "out/good/a",
        "out/good/record.json",
    ]
    assert b"\x1b" not in written["out/good/record.json"]


async def test_what_was_exported_before_a_break_is_in_the_sums(tmp_path: Path) -> None:
    bank = HostileBank(one={"name": "1"}, two={"name": "2"})
    with pytest.raises(LinkLost):
        await export_datasets(bank, tmp_path, ["one", "broken", "two"])
    names = [line[66:] for line in files(tmp_path)["SHA256SUMS"].splitlines()]
    assert names == [b"one/1", b"one/record.json"]
    steps: list[tuple[str, str]] = []
    report = await export_datasets(
        bank, tmp_path, ["one", "two"], step=lambda *each: steps.append(each)
    )
    assert (report.done, report.already, report.bytes) == (1, 1, 1)
    assert steps == [("one", "already there"), ("two", "exported")]
    assert len(files(tmp_path)["SHA256SUMS"].splitlines()) == 4


async def test_a_folder_in_the_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "one" / "1").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        await export_datasets(HostileBank(one={"name": "1"}), tmp_path, ["one"])
