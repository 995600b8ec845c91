"""The list is followed by a process that can open no file any more."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.keyed import KeyedLab, key_of

from labmesh.access.files import looks_the_same
from labmesh.access.guard import FolderGuard, guard_of
from labmesh.protocol.access import Grant

if sys.platform == "linux":
    import resource

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc")


@contextmanager
def no_descriptor() -> Iterator[None]:
    """Nothing can be opened meanwhile."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, before[1]))
    held = []
    try:
        while True:
            try:
                held.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                break
        yield
    finally:
        for each in held:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def lab(tmp_path: Path) -> KeyedLab:
    lab = KeyedLab(tmp_path)
    lab.admit("ana", "operator")
    lab.admit("bob", "operator")
    lab.revoke("bob")
    # As after a while: what has just been changed may be changing still.
    for path in lab.at_broker.path.rglob("*"):
        os.utime(path, (1e9, 1e9))
    return lab


def guard(lab: KeyedLab) -> FolderGuard:
    found = lab.broker.for_node("broker", "broker", guard_of).guard
    assert isinstance(found, FolderGuard)
    return found


def is_admitted(found: FolderGuard, lab: KeyedLab, name: str) -> bool:
    return found.grant_of(lab.grant(name, "operator").user) is not None


def test_the_list_holds_on_while_nothing_can_be_opened(lab: KeyedLab) -> None:
    found = guard(lab)
    found.refresh()
    with no_descriptor():
        assert not found.refresh()
        assert not found.refresh()
    assert is_admitted(found, lab, "ana")
    assert not is_admitted(found, lab, "bob")


def test_a_change_that_cannot_be_read_admits_nobody_until_it_can(lab: KeyedLab) -> None:
    found = guard(lab)
    found.refresh()
    lab.revoke("ana")
    with no_descriptor():
        assert found.refresh()
        assert not is_admitted(found, lab, "ana")
    lab.admit("cleo", "operator")
    assert found.refresh()
    assert is_admitted(found, lab, "cleo")
    assert not is_admitted(found, lab, "ana")


@pytest.mark.parametrize("change", ["a new key", "another key", "one less", "a new folder"])
def test_whatever_changes_is_seen_without_a_descriptor(lab: KeyedLab, change: str) -> None:
    folder = lab.at_broker
    if change == "a new folder":
        (folder.authorized / "bank").rmdir()
    folder.allow_list()
    assert not folder.changed()
    path = next((folder.authorized / "client").glob("*.pub"))
    match change:
        case "a new key":
            folder.authorize(Grant(name="dan", role="viewer", key=key_of("dan")))
        case "another key":
            path.write_text(path.read_text(encoding="utf-8") + "#\n", encoding="utf-8")
        case "one less":
            path.unlink()
        case "a new folder":
            (folder.authorized / "bank").mkdir()
    with no_descriptor():
        assert folder.changed()


def test_what_was_never_seen_is_not_the_same() -> None:
    assert not looks_the_same((), None)
