"""Whatever file operation fails, and however: nothing that was acknowledged is lost, every error
has a type, and the bank goes on once the disk works again.

The figures (FD5, FD6), some minutes::

    python -m pytest -m soak -s --timeout 3600 tests/faults/test_bank_disk_errors.py
"""

from __future__ import annotations

import errno
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.bank_promises import (
    Ending,
    Expected,
    Failed,
    Keeper,
    Violation,
    check,
    expectations,
)
from tests.support.bank_scenarios import in_memory
from tests.support.crash_states import Promise, crash_states
from tests.support.failing_disk import SHORT, Failing

from labmesh.errors import LabmeshError

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="files are looked at in Linux's /proc"
)

ONE = random.Random(1).randbytes(12_000)
TWO = random.Random(2).randbytes(9_000)
FAILURES = {
    "EIO": errno.EIO,
    "ENOSPC": errno.ENOSPC,
    "EDQUOT": errno.EDQUOT,
    "EROFS": errno.EROFS,
    "EMFILE": errno.EMFILE,
    "EINTR": errno.EINTR,
    "short": SHORT,
}


@pytest.fixture
def disk() -> Iterator[Path]:
    with in_memory() as folder:
        yield folder


class Trial:
    """Two uploads and what follows them, on a disk that fails; then on one that works."""

    def __init__(self, root: Path, ops: Failing) -> None:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        self.root, self.ops = root, ops
        self.errors = 0

    def run(self) -> Keeper:
        """All of it; whatever is not an error of labmesh ends it."""
        self.keeper = self._open()
        self._two_uploads()
        for dataset_id in sorted(self.keeper.known):
            self._try(dataset_id, self.keeper.annotate, dataset_id, "tag", "note")
        if "one" in self.keeper.known:
            self._try("one", self.keeper.trash, "one")
        if "one" in self.keeper.known and self.keeper.known["one"].trashed:
            self._try("one", self.keeper.restore, "one")
        self.ops.mend()
        return self.keeper

    def _open(self) -> Keeper:
        try:
            return Keeper(self.root, self.ops, self.ops.note)
        except LabmeshError:
            self.errors += 1
            self.ops.mend()
            return Keeper(self.root, self.ops, self.ops.note)

    def _two_uploads(self) -> None:
        parts = {}
        for name, content in (("one", ONE), ("two", TWO)):
            parts[name] = self._try(None, self.keeper.blobs.begin, len(content), name.encode())
        for end, (name, content) in [(e, each) for e in (1, 2) for each in _TWO_CONTENTS]:
            part = parts[name]
            if part is None:
                continue
            if not self._went_on(part, content[: len(content) * end // 2]):
                parts[name] = None
        for name, content in _TWO_CONTENTS:
            part = parts[name]
            if part is not None:
                self._try(name, self.keeper.finish, part, name, content)

    def _went_on(self, part: Any, content: bytes) -> bool:
        try:
            self.keeper.send(part, content, 2500)
            self.keeper.sync(part, content if len(content) == len(ONE) else _whole(content))
        except LabmeshError:
            self.errors += 1
            self.ops.note(Ending(part.note))
            part.discard()
            return False
        return True

    def _try(self, dataset_id: str | None, action: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return action(*arguments)
        except LabmeshError:
            self.errors += 1
            if dataset_id is not None:
                # It was done or not; what would follow depends on that.
                self.ops.note(Failed(dataset_id))
                self.keeper.known.pop(dataset_id, None)
            return None

    def expected(self) -> Expected:
        """What is expected now."""
        promises = (each.what for each in self.ops.events if isinstance(each, Promise))
        return expectations(promises)[-1]


_TWO_CONTENTS = (("one", ONE), ("two", TWO))


def _whole(content: bytes) -> bytes:
    return next(each for _, each in _TWO_CONTENTS if each.startswith(content))


def run_trial(disk: Path, **fault: Any) -> Trial:
    """One fault; everything that must hold after it."""
    root = disk / "bank"
    trial = Trial(root, Failing(root, **fault))
    keeper = trial.run()
    if trial.ops.syncs_again:
        raise Violation("no second sync", f"{trial.ops.syncs_again}")
    if keeper.blobs.refusal() and not keeper.blobs.probe():
        raise Violation("takes writes again", keeper.blobs.refusal())
    keeper.upload("afterwards", b"the disk works again")
    keeper.close()
    expected = trial.expected()
    # As after a kill, and as after a power cut at the last moment.
    states = list(crash_states(trial.ops.events, last_only=True))
    for state in [states[0], states[-1]]:
        state.build(disk / "crashed")
        check(disk / "crashed", expected)
    check(root, expected)
    return trial


def _run_all(disk: Path, step: int) -> None:
    """FD5."""
    faultless = run_trial(disk)
    operations = faultless.ops.done
    assert faultless.errors == 0
    runs, refused = 0, 0
    for number, (name, failure) in enumerate(FAILURES.items()):
        # Whoever is interrupted asks again: it is no fault that lasts.
        for count in (1, 5) if failure == errno.EINTR else (1, None):
            for first in range((number * 2 + (count or 0)) % step, operations, step):
                try:
                    trial = run_trial(disk, first=first, failure=failure, count=count)
                except Exception as error:
                    often = f"{count} times" if count else "for ever"
                    raise AssertionError(f"{name} {often} from operation {first} on") from error
                runs += 1
                refused += trial.errors
                if failure == SHORT:
                    assert trial.errors == 0
    print(
        f"FD5: {runs} faults in {operations} operations / 0 acknowledged lost, 0 deaths / "
        f"{refused} refusals"
    )


def test_some_operations_fail(disk: Path) -> None:
    _run_all(disk, step=47)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_every_operation_fails(disk: Path) -> None:
    _run_all(disk, step=1)
