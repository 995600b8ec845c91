"""Attacks on a folder of keys: what breaks off, contradicts itself, or is claimed by others."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.support.keyed import KeyedLab

from labmesh.access import changes
from labmesh.access.changes import finish_broker_rotation, rotate_key
from labmesh.access.guard import FolderGuard, guard_of
from labmesh.access.keyring import KeyFolder
from labmesh.errors import ConfigError, Forbidden
from labmesh.transport.key_pairs import new_key_pair

HERE = "127.0.0.1"


@pytest.fixture
def lab(tmp_path: Path) -> KeyedLab:
    return KeyedLab(tmp_path)


def broker_guard(lab: KeyedLab) -> FolderGuard:
    guard = guard_of(lab.broker, "broker", "broker")
    assert guard is not None
    return guard


def wait(found: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10.0
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_broker_s_next_key_may_lie_there_twice_and_revocations_still_count(
    lab: KeyedLab,
) -> None:
    """A rotation that was killed leaves it so, and so does who copies both files by hand."""
    ana = lab.admit("ana", "operator").for_node("client", "ana", guard_of).guard
    assert ana is not None
    coming = new_key_pair()
    guard = broker_guard(lab)
    guard.open()
    try:
        for folder in (lab.at_broker, lab.folders["ana"]):
            for name in ("broker-2", "broker-next"):
                folder.pin_broker(coming.public, name)
        wait(lambda: coming.public in guard.broker_keys())
        assert guard.admit(lab.pairs["ana"].public, "directory", HERE)
        lab.revoke("ana")
        wait(lambda: guard.grant_of(ana.user) is None)
    finally:
        guard.close()
    assert ana.broker_keys() == (lab.broker_pair.public, coming.public)
    assert broker_guard(lab).broker_keys() == (lab.broker_pair.public, coming.public)


def test_a_listener_that_fails_keeps_nobody_from_what_was_revoked(
    lab: KeyedLab, caplog: pytest.LogCaptureFixture
) -> None:
    lab.admit("ana", "operator")
    guard = broker_guard(lab)
    told: list[str] = []

    def failing() -> None:
        raise RuntimeError("a fault")

    guard.on_change(failing)
    guard.on_change(lambda: told.append(guard.version))
    lab.revoke("ana")
    assert guard.refresh()
    assert told == [guard.version]
    with pytest.raises(Forbidden):
        guard.admit(lab.pairs["ana"].public, "directory", HERE)
    assert "was not told" in caplog.text


def test_no_relay_takes_the_broker_s_or_a_bank_s_place_by_its_address(lab: KeyedLab) -> None:
    """It may claim any address where nobody else is listed at the time."""
    guard = lab.admit("ana", "operator").for_node("client", "ana", guard_of).guard
    assert guard is not None
    evil, bank = new_key_pair().public, new_key_pair().public
    at_broker, at_bank = "tcp://10.0.0.5:5750", "tcp://10.0.0.6:5760"
    guard.learn_server("bank", "bank-0", bank.decode(), (at_bank,))
    guard.learn_server("relay", "evil", evil.decode(), (at_broker, at_bank))
    assert guard.broker_keys() == (lab.broker_pair.public,)
    assert guard.bank_keys(at_bank) == guard.bank_keys(at_broker) == (bank,)


# ── files that say two things, or less than they seem to ────────────────────────────────────────


@pytest.mark.parametrize(
    "line",
    ["methods-deny = set_* reset", 'methods-deny = "set_*" "reset"', 'role = "admin"'],
    ids=["without quotes", "two strings", "twice"],
)
def test_a_line_of_which_a_part_would_be_lost_admits_nobody(lab: KeyedLab, line: str) -> None:
    lab.admit("ana", "operator")
    path = lab.at_broker.authorized / "client" / "ana.pub"
    text = path.read_text()
    path.write_text(text.replace("    role =", f"    {line}\n    role ="))
    faults: list[ConfigError] = []
    assert lab.at_broker.allow_list(strict=False, on_fault=faults.append).grants == ()
    assert "line 4" in str(faults[0]) or "line 5" in str(faults[0])
    path.write_text(text.replace('"operator"', '"operator"  # until she leaves'))
    assert lab.at_broker.allow_list().grants[0].role == "operator"


def test_a_key_that_stands_twice_can_be_revoked_by_either_name(lab: KeyedLab) -> None:
    lab.admit("ana", "operator")
    clients = lab.at_broker.authorized / "client"
    (clients / "anna.pub").write_text((clients / "ana.pub").read_text())
    lab.revoke("ana")
    assert lab.at_broker.allow_list().revoked == {lab.pairs["ana"].public.decode()}
    # Also for who stands there under the other name: it is the key that is meant.
    (clients / "ana.pub").unlink(missing_ok=True)
    with pytest.raises(Forbidden, match="was revoked"):
        lab.at_broker.allow_list().admit(
            lab.pairs["ana"].public.decode(), "relay", HERE, time.time()
        )


@pytest.mark.parametrize("what", ["a link to nothing", "a file"])
def test_a_folder_of_the_revoked_that_is_none_admits_nobody(lab: KeyedLab, what: str) -> None:
    lab.admit("ana", "operator")
    revoked = lab.at_broker.revoked
    if what == "a file":
        revoked.write_text("")
    else:
        revoked.symlink_to(lab.at_broker.path / "a disk that is not mounted")
    with pytest.raises(ConfigError, match=r"cannot read .*revoked"):
        lab.at_broker.allow_list(strict=False)
    guard = broker_guard_or_none(lab)
    assert guard is None


def broker_guard_or_none(lab: KeyedLab) -> FolderGuard | None:
    try:
        return broker_guard(lab)
    except ConfigError:
        return None


# ── what breaks off ─────────────────────────────────────────────────────────────────────────────

#: The steps that change a file while a key is replaced.
STEPS = frozenset(["create_file", "remove_file", "replace_file", "make_folders"])


class _Killed(BaseException):
    """Ends a command as a kill does: nothing is cleaned up by it."""


def _killed_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let a command make so many changes, and end it before the next."""
    left = [count]

    def limited(step: Callable[..., object]) -> Callable[..., object]:
        def taken(*args: object) -> object:
            if left[0] == 0:
                raise _Killed
            left[0] -= 1
            return step(*args)

        return taken

    from labmesh.access import allowed_keys, keyring

    for module in (changes, keyring, allowed_keys):
        for name in STEPS & vars(module).keys():
            monkeypatch.setattr(module, name, limited(getattr(module, name)))


def test_a_rotation_that_was_killed_anywhere_is_finished_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, is_done = 0, False
    while not is_done:
        lab = KeyedLab(tmp_path / str(count))
        folder = lab.at_broker
        first = folder.create("ana", "operator")
        folder.authorize(folder.identity("ana").grant)
        with monkeypatch.context() as patched:
            _killed_after(patched, count)
            try:
                rotate_key(folder, "ana")
                is_done = True
            except _Killed:
                count += 1
        if is_done:
            break
        assert rotate_key(folder, "ana").is_authorized, count
        allowed = folder.allow_list()
        assert folder.identity("ana").pair.public.decode() == allowed.grants[0].key, count
        assert first.public.decode() in allowed.revoked, count
    assert count >= 8


def test_the_second_step_of_the_broker_s_rotation_can_be_killed_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, is_done = 0, False
    while not is_done:
        lab = KeyedLab(tmp_path / str(count))
        folder = lab.at_broker
        coming = rotate_key(folder, "broker").identity.pair
        with monkeypatch.context() as patched:
            _killed_after(patched, count)
            try:
                finish_broker_rotation(folder)
                is_done = True
            except _Killed:
                count += 1
        if "broker-next" in folder.names():
            finish_broker_rotation(folder)
        assert KeyFolder(folder.path).identity("broker").pair == coming, count
        assert folder.broker_keys() == (coming.public,), count
        broker_guard(lab)
    assert count >= 8


def test_the_first_step_of_the_broker_s_rotation_can_be_killed_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, is_done = 0, False
    while not is_done:
        lab = KeyedLab(tmp_path / str(count))
        folder = lab.at_broker
        with monkeypatch.context() as patched:
            _killed_after(patched, count)
            try:
                rotate_key(folder, "broker")
                is_done = True
            except _Killed:
                count += 1
        if "broker-next" not in {each.stem for each in folder.trusted.glob("*.pub")}:
            rotate_key(folder, "broker")
        assert len(folder.broker_keys()) == 2, count
    assert count >= 4


@pytest.mark.skipif(os.name == "nt", reason="there is no lock of a folder")
def test_commands_at_the_same_time_wait_for_each_other(lab: KeyedLab) -> None:
    folder = lab.at_broker
    keys = {folder.create("ana", "operator").public.decode()}
    folder.authorize(folder.identity("ana").grant)
    with ThreadPoolExecutor(8) as threads:
        done = list(threads.map(lambda _: rotate_key(KeyFolder(folder.path), "ana"), range(8)))
    assert all(each.is_authorized for each in done)
    keys |= {each.identity.grant.key for each in done}
    (last,) = (each for each in folder.allow_list().grants if each.role == "operator")
    assert folder.identity("ana").grant.key == last.key
    assert folder.allow_list().revoked == keys - {last.key}
