"""The guard of a node: whose key it has, whom it admits, which servers it trusts."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from tests.support.promptness import SLACK_S

from labmesh.access.changes import found_network
from labmesh.access.guard import FolderGuard, guard_of
from labmesh.access.keyring import Identity, KeyFolder
from labmesh.errors import AuthenticationError, ConfigError, Forbidden
from labmesh.protocol.access import Grant, Role
from labmesh.protocol.messages import AccessList
from labmesh.transport.key_pairs import KeyPair, NetworkKeys, new_key_pair
from labmesh.transport.keys import Guard, OneRole, Security

HERE = "127.0.0.1"


@pytest.fixture
def folder(tmp_path: Path) -> KeyFolder:
    return KeyFolder(tmp_path / "keys")


@pytest.fixture
def elsewhere(tmp_path: Path) -> KeyFolder:
    """The folder of a machine that is not the broker's, which trusts the broker."""
    folder = KeyFolder(tmp_path / "elsewhere")
    folder.pin_broker(BROKER.public)
    folder.create("psu-1", "relay")
    return folder


BROKER = new_key_pair()


def grant_for(pair: KeyPair, name: str = "ana", role: Role = "operator") -> Grant:
    return Grant(name=name, role=role, key=pair.public.decode())


def security_with(folder: KeyFolder, mode: str = "keys", **environ: str) -> Security:
    return Security.resolve(mode=mode, environ={"LMH_KEYS_DIR": str(folder.path), **environ})


def guard_for(
    folder: KeyFolder, kind: str, node_id: str, mode: str = "keys", **environ: str
) -> FolderGuard | None:
    return guard_of(security_with(folder, mode), kind, node_id, environ)


def settle(folder: KeyFolder) -> None:
    """As if all that was changed so far was changed long ago."""
    for path in folder.path.rglob("*"):
        os.utime(path, ns=(10**18, 10**18))


# ── whose key a node has ────────────────────────────────────────────────────────────────────────


def test_each_kind_of_node_has_its_own_key(folder: KeyFolder) -> None:
    found_network(folder, "root")
    folder.create("psu-1", "relay")
    for kind, node_id, name in (
        ("broker", "broker", "broker"),
        ("relay", "psu-1", "psu-1"),
        ("client", "client-1234", "root"),
    ):
        guard = guard_for(folder, kind, node_id)
        assert guard is not None
        taken: Guard = guard  # mypy looks whether it is one
        assert taken.identity == folder.secret_of(name)
        assert taken.user == folder.identity(name).grant.user


def test_a_client_says_who_it_is_or_has_the_only_key(elsewhere: KeyFolder) -> None:
    def user(**environ: str) -> str:
        guard = guard_for(elsewhere, "client", "client-1234", **environ)
        assert guard is not None
        return guard.user.partition("#")[0]

    assert user() == "relay:psu-1"  # a relay's script that uploads
    elsewhere.create("ana", "operator")
    assert user() == "client:ana"
    elsewhere.create("bob", "viewer")
    with pytest.raises(ConfigError, match=r"the keys of ana, bob; .* LMH_IDENTITY=ana"):
        user()
    assert user(LMH_IDENTITY="bob") == "client:bob"
    assert user(LMH_IDENTITY="psu-1") == "relay:psu-1"
    elsewhere.choose_identity("ana")
    assert user() == "client:ana"
    with pytest.raises(ConfigError, match="there is no key 'eve'"):
        user(LMH_IDENTITY="eve")


def test_a_key_of_another_kind_is_not_used(elsewhere: KeyFolder) -> None:
    with pytest.raises(ConfigError, match="is that of a relay, and psu-1 is a bank"):
        guard_for(elsewhere, "bank", "psu-1")


def test_without_a_key_mode_keys_is_an_error_that_tells_the_way(elsewhere: KeyFolder) -> None:
    for kind in ("relay", "bank", "broker"):
        with pytest.raises(ConfigError, match=r"has no key.*'labmesh keys join CODE'"):
            guard_for(elsewhere, kind, "psu-2")
    with pytest.raises(ConfigError, match="has no key"):
        guard_for(KeyFolder(elsewhere.path / "nothing"), "client", "c")


def test_in_mode_auto_the_key_decides(
    elsewhere: KeyFolder, caplog: pytest.LogCaptureFixture
) -> None:
    word = {"LMH_NETWORK_PASSWORD": "correct horse battery"}
    for environ, otherwise in ((word, "password"), ({}, "open")):
        security = security_with(elsewhere, "auto", **environ)
        assert security.mode == otherwise
        mine = security.for_node("relay", "psu-1", guard_of)
        assert (mine.mode, mine.keys) == ("keys", None)
        assert mine.guard is not None
        assert mine.for_node("relay", "psu-1", guard_of) is mine
        caplog.clear()
        other = security.for_node("relay", "psu-2", guard_of)
        assert (other.mode, other.guard) == (otherwise, None)
        assert "psu-2 has none of them" in caplog.text
    caplog.clear()
    nothing = security_with(KeyFolder(elsewhere.path / "x"), "auto", LMH_INSECURE="1")
    assert nothing.for_node("client", "c", guard_of) == nothing
    assert caplog.text == ""


@pytest.mark.parametrize("mode", ["password", "open"])
def test_keys_are_not_looked_for_in_another_mode(elsewhere: KeyFolder, mode: str) -> None:
    security = security_with(elsewhere, mode, LMH_NETWORK_PASSWORD="correct horse battery")
    assert security.for_node("relay", "psu-1", guard_of) is security


def test_a_damaged_key_is_an_error_in_mode_auto_too(elsewhere: KeyFolder) -> None:
    elsewhere.secret_path("psu-1").write_text("torn")
    with pytest.raises(ConfigError, match="no line of a key file"):
        guard_for(elsewhere, "relay", "psu-1", "auto")


def test_keys_of_another_network_are_refused(elsewhere: KeyFolder) -> None:
    security = security_with(elsewhere, "auto", LMH_NETWORK="attic")
    with pytest.raises(ConfigError, match="those of network 'labmesh'"):
        security.for_node("relay", "psu-1", guard_of)


def test_without_a_trusted_broker_there_is_no_guard(elsewhere: KeyFolder) -> None:
    elsewhere.distrust_broker("broker")
    with pytest.raises(ConfigError, match="no key of the broker, so that nobody could be trusted"):
        guard_for(elsewhere, "relay", "psu-1")


# ── whom it admits ──────────────────────────────────────────────────────────────────────────────


def admitted(guard: FolderGuard, pair: KeyPair, door: str = "relay") -> str:
    return guard.admit(pair.public, door, HERE).partition("#")[0]


def test_a_folder_is_followed(folder: KeyFolder, caplog: pytest.LogCaptureFixture) -> None:
    found_network(folder, "root")
    guard = guard_for(folder, "broker", "broker")
    assert guard is not None
    changes: list[str] = []
    guard.on_change(lambda: changes.append(guard.version))
    ana = new_key_pair()
    with pytest.raises(Forbidden, match="not on the allow-list"):
        admitted(guard, ana, "directory")
    folder.authorize(grant_for(ana))
    assert guard.refresh()
    user = guard.admit(ana.public, "directory", HERE)
    guard.check(user, "write", relay="psu-1", method="set_voltage")
    folder.revoke("ana")
    assert guard.refresh()
    assert guard.grant_of(user) is None
    with pytest.raises(Forbidden, match="this key was revoked"):
        guard.check(user, "look")
    assert len(set(changes)) == len(changes) == 2
    settle(folder)
    guard.refresh()
    assert not guard.refresh()
    (folder.authorized / "client" / "bad.pub").write_text("torn")
    for _ in range(2):
        guard.refresh()
    assert caplog.text.count("bad.pub") == 1


def test_the_thread_follows_the_folder(folder: KeyFolder) -> None:
    found_network(folder, "root")
    guard = guard_for(folder, "broker", "broker")
    assert guard is not None
    noticed = threading.Event()
    guard.on_change(noticed.set)
    guard.open()
    try:
        ana = new_key_pair()
        folder.authorize(grant_for(ana))
        assert noticed.wait(1.0 + SLACK_S)
        assert admitted(guard, ana, "directory") == "client:ana"
    finally:
        guard.close()
        guard.close()
    assert not any(each.name == "broker-keys" for each in threading.enumerate())


def test_a_fault_of_our_own_admits_nobody_until_it_is_over(
    folder: KeyFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, owner = found_network(folder, "root")
    guard = guard_for(folder, "broker", "broker")
    assert guard is not None
    noticed = threading.Semaphore(0)
    guard.on_change(noticed.release)

    def failing(*_: object) -> None:
        raise RuntimeError("a fault")

    settle(folder)
    guard.refresh()
    monkeypatch.setattr(KeyFolder, "look_at_trusted", failing)
    guard.open()
    try:
        assert noticed.acquire(timeout=1.0 + SLACK_S)
        with pytest.raises(Forbidden):
            admitted(guard, owner.pair)
        monkeypatch.undo()
        assert noticed.acquire(timeout=1.0 + SLACK_S)
        assert admitted(guard, owner.pair) == "client:root"
    finally:
        guard.close()
    assert "could not be followed" in caplog.text


def test_a_folder_that_cannot_be_read_admits_nobody_but_the_broker(
    folder: KeyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker, owner = found_network(folder, "root")
    guard = guard_for(folder, "broker", "broker")
    assert guard is not None

    def failing(path: str | Path) -> list[str]:
        raise PermissionError(13, "Permission denied", str(path))

    settle(folder)
    guard.refresh()
    monkeypatch.setattr(os, "listdir", failing)
    assert guard.refresh()
    with pytest.raises(Forbidden):
        admitted(guard, owner.pair)
    assert admitted(guard, broker.pair) == "broker:broker"
    monkeypatch.undo()
    assert guard.refresh()
    assert admitted(guard, owner.pair) == "client:root"


def test_elsewhere_the_broker_s_list_counts_and_is_kept(elsewhere: KeyFolder) -> None:
    ana, bob = new_key_pair(), new_key_pair()
    guard = guard_for(elsewhere, "relay", "psu-1")
    assert guard is not None
    assert not guard.decides
    with pytest.raises(Forbidden):
        admitted(guard, ana)
    assert admitted(guard, BROKER) == "broker:broker"
    told = AccessList(id="7", version="v1", grants=(grant_for(ana), grant_for(bob, "bob")))
    changes: list[int] = []
    guard.on_change(lambda: changes.append(1))
    assert guard.take(told)
    assert not guard.take(told)
    assert changes == [1]
    assert admitted(guard, ana) == "client:ana"
    cache = elsewhere.path / "cache" / "allow-list.json"
    assert cache.stat().st_mode & 0o777 == 0o600
    assert guard.take(
        AccessList(id="8", version="v2", grants=told.grants, revoked=(told.grants[0].key,))
    )
    # After a restart without the broker the list is the one that was kept.
    again = guard_for(elsewhere, "relay", "psu-1")
    assert again is not None
    assert again.version == "v2"
    assert admitted(again, bob) == "client:bob"
    with pytest.raises(Forbidden, match="was revoked"):
        admitted(again, ana)
    cache.write_text("torn")
    torn = guard_for(elsewhere, "relay", "psu-1")
    assert torn is not None
    assert torn.version == ""
    with pytest.raises(Forbidden):
        admitted(torn, bob)


def test_what_one_broker_revoked_another_does_not_bring_back(elsewhere: KeyFolder) -> None:
    ana, bob = new_key_pair(), new_key_pair()
    grants = (grant_for(ana), grant_for(bob, "bob"))
    first = AccessList(id="1", version="v2", grants=grants, revoked=(grants[0].key,))
    spare = AccessList(id="1", version="v1", grants=grants)
    guard = guard_for(elsewhere, "relay", "psu-1")
    assert guard is not None
    assert guard.take(first, "tcp://first:5750")
    assert guard.take(spare, "tcp://spare:5750")
    # What is asked for next is the spare's version.
    assert guard.version == "v1"
    for each in (guard, guard_for(elsewhere, "relay", "psu-1")):
        assert each is not None
        assert admitted(each, bob) == "client:bob"
        with pytest.raises(Forbidden, match="was revoked"):
            admitted(each, ana)
    # Who revoked it may take that back.
    assert guard.take(AccessList(id="2", version="v3", grants=grants), "tcp://first:5750")
    assert admitted(guard, ana) == "client:ana"


def test_a_list_that_could_not_be_kept_is_kept_the_next_time(
    elsewhere: KeyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ana = new_key_pair()
    told = AccessList(id="1", version="v1", grants=(grant_for(ana),))
    guard = guard_for(elsewhere, "relay", "psu-1")
    assert guard is not None

    def failing(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(ConfigError, match="No space"):
        guard.take(told)
    assert admitted(guard, ana) == "client:ana"
    monkeypatch.undo()
    guard.take(told)
    again = guard_for(elsewhere, "relay", "psu-1")
    assert again is not None
    assert admitted(again, ana) == "client:ana"


def test_a_list_cannot_put_another_in_the_broker_s_place(elsewhere: KeyFolder) -> None:
    guard = guard_for(elsewhere, "relay", "psu-1")
    assert guard is not None
    stranger = new_key_pair()
    evil = (
        grant_for(stranger, "broker", "broker"),
        grant_for(BROKER, "eve", "admin"),
    )
    guard.take(AccessList(id="1", version="v", grants=evil))
    assert admitted(guard, BROKER) == "broker:broker"
    with pytest.raises(Forbidden):
        admitted(guard, stranger)


def test_a_folder_of_its_own_overrides_the_broker_s_list(elsewhere: KeyFolder) -> None:
    mine, theirs = new_key_pair(), new_key_pair()
    elsewhere.authorize(grant_for(mine))
    guard = guard_for(elsewhere, "relay", "psu-1")
    assert guard is not None
    assert guard.decides
    assert not guard.take(AccessList(id="1", version="v", grants=(grant_for(theirs),)))
    assert admitted(guard, mine) == "client:ana"
    with pytest.raises(Forbidden):
        admitted(guard, theirs)


def test_what_is_told_to_others_is_the_list_without_brokers(folder: KeyFolder) -> None:
    _, owner = found_network(folder, "root")
    folder.authorize(grant_for(new_key_pair()))
    (gone,) = folder.revoke("ana")
    guard = guard_for(folder, "broker", "broker")
    assert guard is not None
    told = guard.told("5")
    assert (told.id, told.version) == ("5", guard.version)
    assert (told.grants, told.revoked) == ((owner.grant,), (gone.key,))


# ── which servers it trusts ─────────────────────────────────────────────────────────────────────

RELAY = "tcp://192.168.1.20:5850"


def test_what_the_broker_named_is_expected_first(
    elsewhere: KeyFolder, caplog: pytest.LogCaptureFixture
) -> None:
    guard = guard_for(elsewhere, "relay", "psu-1")
    assert guard is not None
    assert guard.server_keys(RELAY) == (BROKER.public,)
    first, second = new_key_pair().public, new_key_pair().public
    guard.learn_server("relay", "psu-2", first.decode(), (RELAY, "tcp://*:1", "http://x", 'a"b'))
    assert guard.server_keys(RELAY) == (first, BROKER.public)
    assert "another key" not in caplog.text
    # It is there after a restart, and a change is said.
    again = guard_for(elsewhere, "relay", "psu-1")
    assert again is not None
    assert again.server_keys(RELAY) == (first, BROKER.public)
    again.learn_server("relay", "psu-2", second.decode(), (RELAY,))
    assert again.server_keys(RELAY) == (second, BROKER.public)
    assert "relay psu-2 has another key now" in caplog.text


def test_a_pinned_key_that_changes_is_refused(elsewhere: KeyFolder) -> None:
    key, other = new_key_pair().public.decode(), new_key_pair().public.decode()
    path = elsewhere.path / "known_relays.toml"
    path.write_text(f'[pinned]\n"relay:psu-2" = "{key}"\n')
    guard = guard_for(elsewhere, "relay", "psu-1")
    assert guard is not None
    guard.learn_server("relay", "psu-2", key, (RELAY,))
    with pytest.raises(AuthenticationError, match=r"is pinned for it .* remove that line"):
        guard.learn_server("relay", "psu-2", other, (RELAY,))
    assert guard.server_keys(RELAY)[0].decode() == key
    assert "[pinned]" in path.read_text()


def test_known_servers_that_cannot_be_read_are_said(elsewhere: KeyFolder) -> None:
    (elsewhere.path / "known_relays.toml").write_text("[endpoints")
    with pytest.raises(ConfigError, match="remove it: the broker names all keys again"):
        guard_for(elsewhere, "relay", "psu-1")


def test_a_broker_that_is_trusted_later_is_trusted_at_once(elsewhere: KeyFolder) -> None:
    guard = guard_for(elsewhere, "relay", "psu-1")
    assert guard is not None
    coming = new_key_pair()
    elsewhere.pin_broker(coming.public, "broker-next")
    assert guard.server_keys(RELAY) == (BROKER.public, coming.public)
    assert admitted(guard, coming) == "broker:broker-1"
    elsewhere.pin_broker(coming.public)
    elsewhere.distrust_broker("broker-next")
    assert guard.server_keys(RELAY) == (coming.public,)
    (elsewhere.trusted / "broker.pub").write_text("torn")
    assert guard.server_keys(RELAY) == (coming.public,)


# ── the other modes ─────────────────────────────────────────────────────────────────────────────


def test_members_of_a_password_have_one_role() -> None:
    keys = NetworkKeys.from_password("correct horse battery", "labmesh")
    operator = Security("password", keys=keys).permissions
    assert operator == OneRole("operator")
    for action in ("look", "write", "lease", "upload", "annotate", "register", "publish"):
        operator.check("member", action)  # type: ignore[arg-type]
    for action in ("break", "delete"):
        with pytest.raises(Forbidden, match='password_role = "admin"'):
            operator.check("member", action)  # type: ignore[arg-type]
    viewer = Security("password", keys=keys, password_role="viewer").permissions
    assert viewer is not None
    viewer.check("member", "register")
    with pytest.raises(Forbidden, match="they have the role viewer"):
        viewer.check("member", "write")
    assert Security("password", keys=keys, password_role="admin").permissions is None
    assert Security("open").permissions is None


def test_a_mesh_of_its_own_does_not_use_the_keys_of_the_machine(elsewhere: KeyFolder) -> None:
    demo = security_with(elsewhere, "auto").without_keys()
    assert demo.for_node("relay", "psu-1", guard_of).mode == "open"
    wanted = security_with(elsewhere, "keys")
    assert wanted.without_keys() is wanted


def test_in_mode_keys_the_guard_decides(elsewhere: KeyFolder) -> None:
    security = security_with(elsewhere).for_node("relay", "psu-1", guard_of)
    assert security.permissions is security.guard
    assert security.guard is not None
    assert isinstance(Identity("a", "relay", security.guard.identity).grant, Grant)
