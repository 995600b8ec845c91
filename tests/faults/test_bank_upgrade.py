"""A data folder that version 0.1.0 wrote is read whole (FD20).

``tests/data/bank-0.1.0`` was written by that version, and ends as a kill leaves one: with the bytes
of an unfinished upload and a record that was not renamed.
"""

from __future__ import annotations

import hashlib
import math
import random
import shutil
from pathlib import Path

import msgspec
import pytest

from labmesh.protocol.messages import Annotation, DatasetId, DatasetRecord
from labmesh.storage.filesystem import open_folder

OLD = Path(__file__).parents[1] / "data" / "bank-0.1.0"
SWEEP = random.Random(3).randbytes(5000)
CONTENTS = {
    "20260901T120000-aaaa0001": b"",
    "20260901T120001-aaaa0002": "Temperatur in °C: 4,2\n".encode(),
    "20260901T120002-aaaa0003": SWEEP,
    "20260901T120003-aaaa0004": SWEEP,
    "given_by-hand.1": b"x" * 300,
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy of the folder."""
    return shutil.copytree(OLD, tmp_path / "bank")


def test_every_dataset_of_version_0_1_0_is_there(root: Path) -> None:
    starts = 3
    for _ in range(starts):  # also once more, when what is derived has been written
        blobs, catalog = open_folder(root)
        try:
            records = catalog.page(0, 100).records
            assert [each.dataset_id for each in records] == list(CONTENTS)
            assert [each.sequence for each in records] == [1, 2, 3, 4, 5]
            for each in records:
                content = CONTENTS[each.dataset_id]
                assert each.size == len(content)
                assert blobs.read(each.sha256, 0, each.size) == content
                blobs.verify(each.sha256, each.size)
            text, sweep = records[1], records[2]
            assert (text.kind, text.name, text.relay_id) == ("text", "log \u2013 été", "Inst-0")
            assert text.created == 1788264001.25
            assert text.meta == {
                "sample": {"id": "S-17", "layers": [1, 2.5, None, True]},
                "note": "µ, 温度, ☃",
            }
            assert math.isnan(sweep.meta["nan"])
            assert (sweep.meta["inf"], sweep.meta["big"]) == (-math.inf, 2**53)
            assert blobs.unfinished() == []
        finally:
            catalog.close()
            blobs.close()
    print(f"FD20: {len(CONTENTS)} datasets / 0 lost / {starts} starts")


def test_it_takes_what_version_0_1_0_did_not_know(root: Path) -> None:
    blobs, catalog = open_folder(root)
    try:
        content = b"new"
        digest = hashlib.sha256(content).hexdigest()
        part = blobs.begin(len(content))
        part.write(0, content)
        part.finish(len(content), digest)
        stored = catalog.add(
            DatasetRecord(
                dataset_id=DatasetId("new"),
                size=len(content),
                sha256=digest,
                bank_id="bank-0",
                parents=[DatasetId("given_by-hand.1")],
                tags=["calibration"],
                provenance={"user": "me"},
            )
        )
        assert stored.sequence == 6
        old = catalog.annotate("given_by-hand.1", Annotation(time=1.0, add_tags=["old"]))
        assert old.tags == ["old"]
    finally:
        catalog.close()
        blobs.close()
    blobs, catalog = open_folder(root)
    try:
        assert catalog.get("new") == stored
        full = catalog.full("new")
        assert full is not None
        assert full.provenance == {"user": "me"}
        found = catalog.get("given_by-hand.1")
        assert found == msgspec.structs.replace(old, provenance={})
        assert catalog.count() == len(CONTENTS) + 1
    finally:
        catalog.close()
        blobs.close()
