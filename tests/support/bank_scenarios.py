"""What a bank does with its disk, for those who look at every moment of it."""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.bank_promises import Expected, Keeper, expectations
from tests.support.crash_states import Event, Promise, Recorder

__all__ = ["LARGER", "OTHER", "SCENARIOS", "SMALL", "Scenario", "in_memory", "promised", "record"]

SMALL = bytes(range(256)) * 3
LARGER = random.Random(4).randbytes(9_000)
OTHER = random.Random(5).randbytes(7_000)


def upload(keeper: Keeper) -> None:
    """Some datasets, one empty."""
    keeper.upload("empty", b"")
    keeper.upload("small", SMALL)
    keeper.upload("larger", LARGER)


def dedupe(keeper: Keeper) -> None:
    """The same bytes twice, and one id twice."""
    keeper.upload("first", LARGER)
    keeper.upload("second", LARGER)
    keeper.upload("first", LARGER)


def two_at_once(keeper: Keeper) -> None:
    """Two uploads whose steps alternate."""
    one, two = (keeper.blobs.begin(len(each), note=each[:8]) for each in (LARGER, OTHER))
    keeper.send(one, LARGER[:5000])
    keeper.send(two, OTHER[:6000])
    keeper.send(one, LARGER)
    keeper.send(two, OTHER)
    threads = [
        threading.Thread(target=keeper.finish, args=each)
        for each in ((one, "one", LARGER), (two, "two", OTHER))
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()


def resume(keeper: Keeper) -> None:
    """An upload that the next process continues, beside one that is given up."""
    part = keeper.blobs.begin(len(LARGER), note=b"resumed")
    lost = keeper.blobs.begin(None, note=b"given up")
    keeper.send(part, LARGER[:4000])
    keeper.sync(part, LARGER)
    keeper.send(lost, OTHER[:5000])
    keeper.sync(lost, OTHER)
    keeper.send(part, LARGER[:6000])
    keeper.sync(part, LARGER)
    part.leave()
    keeper.close()
    keeper.open()
    parts = {each.note: each for each in keeper.blobs.unfinished()}
    keeper.send(parts[b"resumed"], LARGER)
    keeper.finish(parts[b"resumed"], "resumed", LARGER)
    keeper.drop(parts[b"given up"])


def annotate(keeper: Keeper) -> None:
    """Tags and notes."""
    keeper.upload("noted", SMALL)
    for number in range(3):
        keeper.annotate("noted", f"tag-{number}", f"note {number}: é\n")


def delete(keeper: Keeper) -> None:
    """Into the trash, out of it, and away for ever."""
    keeper.upload("kept", SMALL)
    keeper.upload("thrown-away", LARGER)
    keeper.annotate("thrown-away", "tag", "note")
    keeper.trash("thrown-away")
    keeper.restore("thrown-away")
    keeper.trash("thrown-away")
    keeper.purge("thrown-away")
    keeper.upload("thrown-away", OTHER)


Scenario = Callable[[Keeper], None]

SCENARIOS: list[Scenario] = [upload, dedupe, two_at_once, resume, annotate, delete]


@contextmanager
def in_memory() -> Iterator[Path]:
    """A new folder, in memory where there is such a disk; it is gone afterwards."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="labmesh-", dir=memory if memory.is_dir() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def record(scenario: Scenario, root: Path, make: type[Recorder]) -> list[Event]:
    """What is done to the disk in a scenario."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    recorder = make(root)
    keeper = Keeper(root, recorder, recorder.note)
    scenario(keeper)
    keeper.close()
    return recorder.events


def promised(events: list[Event]) -> list[Expected]:
    """What is expected after so many events."""
    found = expectations(each.what for each in events if isinstance(each, Promise))
    count, by_event = 0, [found[0]]
    for each in events:
        count += isinstance(each, Promise)
        by_event.append(found[count])
    return by_event
