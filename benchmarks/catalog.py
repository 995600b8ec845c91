"""How fast a bank's catalogue is: adding, starting, rebuilding, listing and searching.

    python benchmarks/catalog.py --datasets 100000
    python benchmarks/catalog.py --datasets 100000 --bank /var/tmp/bank-100000

The folder is on the disk of --folder, for the figures of adding are those of its syncs. Searches
are the best of several runs, as on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from harness.report import machine

from labmesh.protocol.messages import Condition, DatasetId, DatasetRecord, SearchDatasets
from labmesh.protocol.query import condition
from labmesh.storage.catalog import FileCatalog

_WORDS = [
    "cold",
    "warm",
    "sweep",
    "field",
    "gate",
    "laser",
    "magnet",
    "sample",
    "spectrum",
    "noise",
    "calibration",
    "transport",
    "reference",
    "background",
    "helium",
    "nitrogen",
    "pressure",
    "cavity",
    "qubit",
    "readout",
    "wafer",
    "mask",
    "anneal",
    "deposit",
    "etch",
    "probe",
]

#: What is asked for, in words for people.
_SEARCHES: dict[str, dict[str, Any]] = {
    "newest 100, no condition": {},
    "sample.id = S17 (1 in 500)": {"where": ["sample.id=S17"]},
    "operator = ada (1 in 4)": {"where": ["operator=ada"]},
    "temperature < 3 (1 %)": {"where": ["temperature<3"]},
    "temperature > 0 (all), by created": {"where": ["temperature>0"], "sort": "created"},
    "150 <= temperature < 150.1": {"where": ["temperature>=150", "temperature<150.1"]},
    "operator, gain > 5, field = 2": {"where": ["operator=bob", "settings.gain>5", "field=2"]},
    "relay, kind, by size": {"where": ["relay=Inst-3", "kind=npy"], "sort": "size"},
    "name like *-laser-*": {"where": ["name=*-laser-*"]},
    "comment has 'laser magnet'": {"where": ["comment~laser magnet"]},
    "tag good": {"tags": ["good"]},
    "word of one dataset": {"text": "scan-042421"},
    "three words": {"text": "laser cavity qubit"},
    "a word of all, by size": {"text": "scan", "sort": "size"},
    "two letters": {"text": "qx"},
    "nothing is so hot": {"where": ["temperature>1000"]},
    "contradiction of two halves": {"where": ["temperature>150", "settings.range>0.5", "field=9"]},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--datasets", type=int, default=100_000, metavar="N")
    parser.add_argument("--adds", type=int, default=1000, metavar="N", help="to add one by one")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument(
        "--bank",
        type=Path,
        metavar="FOLDER",
        help="keep the datasets there, and use those of an earlier run",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to this file")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="labmesh-catalog-", dir=options.folder))
    try:
        figures = dict(_adding(folder, options.adds))
        bank = options.bank or folder / "bank"
        figures.update(_measured(bank, options.datasets))
    finally:
        shutil.rmtree(folder)
    width = max(map(len, figures))
    for name, (number, unit) in figures.items():
        print(f"{name:<{width}}  {number:>12,.2f} {unit}")
    if options.json is not None:
        document = {"machine": machine(), "datasets": options.datasets, "figures": figures}
        options.json.write_text(json.dumps(document, indent=1), encoding="utf-8")
    return 0


def _adding(folder: Path, adds: int) -> Iterator[tuple[str, tuple[float, str]]]:
    yield "fsync of a new small file", (adds / _sync_files(folder / "syncs", adds), "/s")
    for threads in (1, 8):
        catalog = FileCatalog(folder / f"added-{threads}")
        records = [_record(number) for number in range(1, adds + 1)]
        began = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(catalog.add, records))
        took = time.perf_counter() - began
        catalog.close()
        yield f"add, {threads} thread(s)", (adds / took, "/s")


def _measured(root: Path, datasets: int) -> Iterator[tuple[str, tuple[float, str]]]:
    if not root.exists():
        _write_records(root, datasets)
    for each in root.glob("catalog.sqlite*"):
        each.unlink()
    yield "build from the files", (_seconds(lambda: FileCatalog(root).close(), 1), "s")
    yield "start", (_seconds(lambda: FileCatalog(root).close(), 3), "s")
    yield "catalog.sqlite", ((root / "catalog.sqlite").stat().st_size / 2**20, "MiB")
    catalog = FileCatalog(root)
    some = catalog.page(after=datasets // 2, limit=1).records[0]
    yield "get", (1000 * _seconds(lambda: catalog.get(some.dataset_id)), "ms")
    yield "full", (1000 * _seconds(lambda: catalog.full(some.dataset_id)), "ms")
    yield "refers", (1000 * _seconds(lambda: catalog.refers(some.sha256)), "ms")
    yield "page of 100 in the middle", (1000 * _seconds(lambda: catalog.page(datasets // 2)), "ms")
    yield "page of 1000", (1000 * _seconds(lambda: catalog.page(limit=1000)), "ms")
    for name, facts in _SEARCHES.items():
        query = _search(**facts)
        found = len(catalog.search(query).records)
        took = _seconds(lambda query=query: catalog.search(query))
        yield f"search: {name} [{found}]", (1000 * took, "ms")
    catalog.close()


def _search(where: Sequence[str] = (), **facts: Any) -> SearchDatasets:
    conditions: list[Condition] = [condition(each) for each in where]
    return SearchDatasets(id="1", where=conditions, **facts)


def _seconds(call: Callable[[], object], times: int = 7) -> float:
    best = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - began)
    return best


def _sync_files(folder: Path, number: int) -> float:
    folder.mkdir()
    began = time.perf_counter()
    for each in range(number):
        fd = os.open(folder / str(each), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(fd, b"x" * 600)
        os.fsync(fd)
        os.close(fd)
    return time.perf_counter() - began


def _write_records(root: Path, number: int) -> None:
    """What a bank has written, without its syncs."""
    (root / "records").mkdir(parents=True)
    for each in range(1, number + 1):
        record = _record(each)
        fields = {"format": 1, **{name: getattr(record, name) for name in record.__struct_fields__}}
        path = root / "records" / f"{record.dataset_id}.json"
        path.write_text(json.dumps(fields), encoding="utf-8")


def _record(number: int) -> DatasetRecord:
    pick = random.Random(number)
    return DatasetRecord(
        dataset_id=DatasetId(f"scan-{number:06d}-{pick.randrange(16**6):06x}"),
        size=pick.randrange(10**7),
        sha256=f"{pick.getrandbits(256):064x}",
        bank_id="bank-0",
        relay_id=f"Inst-{number % 20}",
        name=f"{pick.choice(_WORDS)}-{pick.choice(_WORDS)}-{number}",
        kind=pick.choice(["npy", "text", "json", "netcdf"]),
        created=1.7e9 + number * 60 + pick.random(),
        sequence=number,
        meta={
            "sample": {"id": f"S{pick.randrange(500)}", "batch": pick.randrange(40)},
            "temperature": pick.uniform(0, 300),
            "field": pick.choice([0, 1, 2, 5.5]),
            "operator": pick.choice(["ada", "bob", "eve", "kim"]),
            "settings": {
                "gain": pick.randrange(10),
                "range": pick.random(),
                "channels": ["a", "b", pick.choice(_WORDS)],
            },
            "comment": " ".join(pick.choices(_WORDS, k=10)),
        },
        tags=[pick.choice(["good", "bad", "raw"])] if number % 3 == 0 else [],
        provenance={"user": "ada", "host": "lab-3", "program": "sweep.py", "python": "3.11.7"},
    )


if __name__ == "__main__":
    sys.exit(main())
