"""After a power cut at any moment, in any state that a disk may leave, a relay's spool has what it
took, and passes nothing off as what it is not.
"""

from __future__ import annotations

import itertools
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.crash_states import CrashState, Event, Promise, Recorder, crash_states
from tests.support.spools import upload_start

from labmesh.errors import Damaged
from labmesh.storage.fileops import Access, FileOps
from labmesh.storage.spool import Spool, Spooled

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="files are looked at in Linux's /proc"
)

LIMIT = 10**9
CONTENTS = {
    "small": bytes(range(256)) * 3,
    "stream": random.Random(1).randbytes(20_000),
    "refused": random.Random(2).randbytes(5000),
    "cut": random.Random(3).randbytes(9000),
    "later": b"later",
}


@pytest.fixture
def disk() -> Iterator[Path]:
    """A folder in memory, where there is one."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="labmesh-", dir=memory if memory.is_dir() else None))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def store(spool: Spool, recorder: Recorder, name: str, *, stream: bool = False) -> Spooled:
    content = CONTENTS[name]
    incoming = spool.begin(upload_start(name, size=None if stream else len(content)))
    for offset in range(0, len(content), 4000):
        incoming.write(content[offset : offset + 4000])
    spooled = incoming.finish()
    recorder.note(("stored", name))
    return spooled


def a_life(root: Path, recorder: Recorder) -> list[Event]:
    """All that happens to a spool: datasets come, are sent, refused, interrupted."""
    spool = Spool(root / "spool", LIMIT, recorder)
    small = store(spool, recorder, "small")
    stream = store(spool, recorder, "stream", stream=True)
    stream = spool.bind(stream, "bank-1")
    recorder.note(("bound", "stream"))
    refused = store(spool, recorder, "refused")
    recorder.note(("at a bank", "small"))
    spool.sent(small)
    spool.put_aside(refused, "refused", "no bank takes it")
    cut = spool.begin(upload_start("cut", size=None))
    cut.write(CONTENTS["cut"])
    cut.abandon("the driver failed", keep=True)
    store(spool, recorder, "later")
    recorder.note(("at a bank", "stream"))
    spool.sent(stream)
    spool.close()
    return recorder.events


def promised(events: list[Event], at: int) -> dict[str, set[str]]:
    kept: dict[str, set[str]] = {"stored": set(), "bound": set(), "at a bank": set()}
    for each in events[:at]:
        if isinstance(each, Promise):
            kept[each.what[0]].add(each.what[1])
    return kept


def violations(state: CrashState, root: Path, kept: dict[str, set[str]]) -> list[str]:
    """What a relay that starts now would do wrong."""
    state.build(root)
    spool = Spool(root / "spool", LIMIT)
    try:
        wrong = []
        waiting = {}
        for each in spool.waiting():
            name = each.entry.start.dataset_id
            if name in waiting:
                wrong.append(f"{name} waits twice")
            waiting[name] = each
            try:
                spool.verify(each)
            except Damaged as exc:
                if name in kept["stored"]:
                    wrong.append(f"{name}: {exc}")
            else:
                if each.path.read_bytes() != CONTENTS[name]:
                    wrong.append(f"{name} has other bytes")
        for name in kept["stored"] - kept["at a bank"] - waiting.keys():
            if not aside(root, name):
                wrong.append(f"{name} is lost")
        for name in kept["bound"] & waiting.keys():
            if waiting[name].begun_at != "bank-1":
                wrong.append(f"{name} has forgotten its bank")
        if "cut" in waiting:
            wrong.append("what was interrupted would be sent")
        return wrong
    finally:
        spool.close()


def aside(root: Path, name: str) -> bool:
    """It is put aside whole, with an entry and a reason."""
    for folder in (root / "spool" / "refused").glob(f"*-{name}"):
        if any(not (folder / each).is_file() for each in ("entry.json", "data", "reason.txt")):
            return False
        is_named = f'"dataset_id": "{name}"'.encode() in (folder / "entry.json").read_bytes()
        return is_named and (folder / "data").read_bytes() == CONTENTS[name]
    return False


def every_state(disk: Path, make: type[Recorder]) -> Iterator[list[str]]:
    """What would be wrong in each state."""
    root = disk / "life"
    root.mkdir()
    events = a_life(root, make(root))
    for state in crash_states(events, most_changes=3):
        found = violations(state, disk / "crash", promised(events, state.at))
        yield [f"{state.story}: {each}" for each in found]


def test_a_spool_keeps_its_promises_through_every_power_cut(disk: Path) -> None:
    found = list(every_state(disk, Recorder))
    wrong = [each for state in found for each in state]
    print(f"spool: {len(found)} crash states, {len(wrong)} violations")
    assert len(found) > 300
    assert wrong == []


class NoSync(Recorder):
    """Nothing is ever synced."""

    def fsync(self, fd: int) -> None:
        """Say that it was."""


class NoFolderSync(Recorder):
    """Names are never synced."""

    def fsync_dir(self, path: Path) -> None:
        """Say that they were."""


@pytest.mark.parametrize("mutant", [NoSync, NoFolderSync])
def test_a_spool_that_does_not_sync_is_found_out(mutant: type[Recorder], disk: Path) -> None:
    assert any(every_state(disk, mutant))


class Killed(BaseException):
    """What stands for the end of the process."""


class Mortal(Recorder):
    """It dies before one of its operations, and does nothing from then on."""

    def __init__(self, root: Path, operations: int) -> None:
        super().__init__(root)
        self.left = operations

    def live(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed

    def open(self, path: Path, access: Access) -> int:
        self.live()
        return super().open(path, access)

    def write(self, fd: int, offset: int, piece: memoryview) -> int:
        self.live()
        return super().write(fd, offset, piece)

    def fsync(self, fd: int) -> None:
        self.live()
        super().fsync(fd)

    def rename(self, source: Path, target: Path) -> None:
        self.live()
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self.live()
        super().unlink(path)

    def mkdir(self, path: Path) -> None:
        self.live()
        super().mkdir(path)

    def fsync_dir(self, path: Path) -> None:
        self.live()
        super().fsync_dir(path)


def test_a_kill_before_any_operation_loses_nothing(disk: Path) -> None:
    """What the kernel has been given, it keeps: nothing is lost but what was never written."""
    for operations in itertools.count():
        root = disk / "killed"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        mortal = Mortal(root, operations)
        try:
            a_life(root, mortal)
        except Killed:
            for fd in list(mortal.paths):
                FileOps.close(mortal, fd)
        kept = promised(mortal.events, len(mortal.events))
        spool = Spool(root / "spool", LIMIT)
        waiting = {each.entry.start.dataset_id: each for each in spool.waiting()}
        for each in waiting.values():
            spool.verify(each)
        missing = kept["stored"] - kept["at a bank"] - waiting.keys()
        assert not [name for name in missing if not aside(root, name)], operations
        assert "cut" not in waiting
        spool.close()
        again = Spool(root / "spool", LIMIT)
        assert again.found == [], "a second start finds nothing more"
        assert again.facts() == spool.facts()
        again.close()
        if mortal.left >= 0:
            break
    print(f"spool: killed before each of {operations} operations, 0 lost")
    assert operations > 80
