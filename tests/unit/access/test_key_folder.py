"""The folder of keys: its files, what is refused, revocation, rotation, and what is found wrong."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq.auth

from labmesh.access.certificates import parse_until, until_words
from labmesh.access.changes import finish_broker_rotation, found_network, rotate_key
from labmesh.access.folder_check import check_folder
from labmesh.access.keyring import KeyFolder
from labmesh.errors import ConfigError, Conflict, NotFound
from labmesh.protocol.access import Grant, Role
from labmesh.transport.key_pairs import KeyPair, new_key_pair


@pytest.fixture
def folder(tmp_path: Path) -> KeyFolder:
    return KeyFolder(tmp_path / "keys")


def grant_for(pair: KeyPair, name: str = "ana", role: Role = "operator", **limits: object) -> Grant:
    return Grant(name=name, role=role, key=pair.public.decode(), **limits)  # type: ignore[arg-type]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def wrong(folder: KeyFolder) -> list[str]:
    return [each.text for each in check_folder(folder) if each.level == "wrong"]


def test_a_secret_is_private_from_the_first_moment_on(folder: KeyFolder) -> None:
    before = os.umask(0)
    try:
        pair = folder.create("psu-1", "relay")
    finally:
        os.umask(before)
    assert mode(folder.secret_path("psu-1")) == 0o600
    assert mode(folder.own) == mode(folder.path) == 0o700
    assert folder.secret_of("psu-1") == pair
    assert [each.name for each in folder.identities()] == ["psu-1"]
    with pytest.raises(ConfigError, match="exists already, and a key is never overwritten"):
        folder.create("psu-1", "relay")
    assert folder.secret_of("psu-1") == pair
    assert pair.secret.decode() not in repr(folder.identity("psu-1"))


def test_the_files_are_those_of_pyzmq(folder: KeyFolder, tmp_path: Path) -> None:
    pair = folder.create("psu-1", "relay")
    assert zmq.auth.load_certificate(folder.secret_path("psu-1")) == (pair.public, pair.secret)
    assert zmq.auth.load_certificate(folder.public_path("psu-1")) == (pair.public, None)
    # And the other way round: a file that pyzmq made, copied by hand.
    public, _ = zmq.auth.create_certificates(tmp_path, "ana", metadata={"name": "ana"})
    place = folder.authorized / "client" / "ana.pub"
    place.parent.mkdir(parents=True)
    place.write_bytes(Path(public).read_bytes())
    (taken,) = folder.allow_list().grants
    assert (taken.name, taken.role) == ("ana", "viewer")
    assert taken.key.encode() == zmq.auth.load_certificate(public)[0]


@pytest.mark.parametrize("rights", [0o640, 0o604, 0o620, 0o666])
def test_a_secret_that_others_may_read_is_refused(folder: KeyFolder, rights: int) -> None:
    folder.create("psu-1", "relay")
    folder.secret_path("psu-1").chmod(rights)
    with pytest.raises(ConfigError, match=r"others on this computer may read it .* chmod 600"):
        folder.identity("psu-1")
    assert any("chmod 600" in each for each in wrong(folder))


@pytest.mark.parametrize("name", ["", "../x", "a/b", "broker", "broker-2", ".hidden", "con", "ä"])
def test_a_name_that_is_no_id_or_the_broker_s_is_refused(folder: KeyFolder, name: str) -> None:
    with pytest.raises(ConfigError):
        folder.create(name, "relay")
    with pytest.raises(ConfigError):
        folder.authorize(grant_for(new_key_pair(), name))
    assert not folder.path.exists()


def change(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda text: "", "has no public key"),
        (lambda text: "garbage", "line 1 is no line of a key file"),
        (lambda text: text[: text.index("secret-key")], "has no secret key"),
        (lambda text: text[:-20], "damaged secret key|is no line of a key file"),
        (change('secret-key = "', 'secret-key = "x'), "damaged secret key"),
        (change("metadata", "matadeta"), "is no line of a key file"),
        (change('role = "relay"', ""), "does not say whose it is"),
        (change('role = "relay"', 'role = "root"'), "does not say whose it is"),
        (lambda text: "\x00\xff", "no line of a key file"),
    ],
)
def test_a_damaged_secret_is_refused_with_its_path(
    folder: KeyFolder, spoil: Callable[[str], str], says: str
) -> None:
    folder.create("psu-1", "relay")
    path = folder.secret_path("psu-1")
    path.write_text(spoil(path.read_text()))
    with pytest.raises(ConfigError, match=says) as caught:
        folder.identity("psu-1")
    assert str(path) in str(caught.value)
    assert str(caught.value) in wrong(folder)


def test_two_halves_of_different_keys_are_refused(folder: KeyFolder) -> None:
    pair, other = folder.create("psu-1", "relay"), new_key_pair()
    path = folder.secret_path("psu-1")
    good = path.read_text()
    path.write_text(good.replace(pair.secret.decode(), other.secret.decode()))
    with pytest.raises(ConfigError, match="not the other half of its public key"):
        folder.identity("psu-1")
    path.write_text(good)
    public = folder.public_path("psu-1")
    public.write_text(public.read_text().replace(pair.public.decode(), other.public.decode()))
    with pytest.raises(ConfigError, match="is not the public half of"):
        folder.identity("psu-1")


def test_a_key_that_is_not_there_is_named_with_those_that_are(folder: KeyFolder) -> None:
    with pytest.raises(NotFound, match="there is none at all; 'labmesh keys new'"):
        folder.identity("psu-1")
    folder.create("psu-1", "relay")
    with pytest.raises(NotFound, match="did you mean 'psu-1'"):
        folder.identity("psu-2")


def test_whoever_is_authorized_is_on_the_list_with_all_limits(folder: KeyFolder) -> None:
    full = grant_for(
        new_key_pair(),
        relays=("psu-*", "Inst-1"),
        methods_deny=("set_*",),
        addresses=("10.0.0.0/8", "::1"),
        not_after=parse_until("2027-01-01"),
    )
    plain = grant_for(new_key_pair(), "psu-1", "relay")
    first = folder.allow_list().version
    folder.authorize(full)
    folder.authorize(plain)
    allowed = folder.allow_list()
    assert set(allowed.grants) == {full, plain}
    assert allowed.version != first
    assert folder.allow_list().version == allowed.version
    assert folder.grant_of("client", "ana") == full


def test_revoked_wins_over_authorized(folder: KeyFolder) -> None:
    former = grant_for(new_key_pair())
    path = folder.authorize(former)
    copy = path.read_text()
    assert folder.revoke("ana") == [former]
    assert not path.exists()
    path.write_text(copy)  # somebody puts it back
    allowed = folder.allow_list()
    assert allowed.grant_of(former.user) is None
    with pytest.raises(Conflict, match="was revoked; make a new one, or remove its file"):
        folder.authorize(former)
    # A new key of the same name is another one; revoked once more, both stay refused.
    path.unlink()
    fresh = grant_for(new_key_pair())
    folder.authorize(fresh)
    assert folder.allow_list().grant_of(fresh.user) == fresh
    folder.revoke("ana")
    assert folder.allow_list().revoked == {former.key, fresh.key}
    assert set(folder.revoked_names()) == {former.key, fresh.key}
    with pytest.raises(NotFound, match="nobody called 'ana' is authorized"):
        folder.revoke("ana")


def test_another_key_for_a_name_revokes_the_former(folder: KeyFolder) -> None:
    former, fresh = grant_for(new_key_pair()), grant_for(new_key_pair())
    folder.authorize(former)
    folder.authorize(fresh)
    allowed = folder.allow_list()
    assert allowed.grants == (fresh,)
    assert allowed.revoked == {former.key}


def test_a_key_stands_under_one_name_only(folder: KeyFolder) -> None:
    pair = new_key_pair()
    folder.authorize(grant_for(pair))
    with pytest.raises(Conflict, match="stands for operator ana already"):
        folder.authorize(grant_for(pair, "bob"))
    with pytest.raises(Conflict, match="stands for operator ana already"):
        folder.authorize(grant_for(pair, "ana", "relay"))
    # By hand: then nobody knows whose it is.
    place = folder.authorized / "client"
    (place / "bob.pub").write_text((place / "ana.pub").read_text())
    with pytest.raises(ConfigError, match=r"ana\.pub and authorized/client/bob\.pub"):
        folder.allow_list()
    said: list[ConfigError] = []
    assert folder.allow_list(strict=False, on_fault=said.append).grants == ()
    assert len(said) == 1
    assert str(said[0]) in wrong(folder)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "has no public key"),
        ("\xff\xfe", "no line of a key file"),
        ('curve\n    public-key = "short"\n', "damaged public key"),
        ('metadata\n  role = "root"\ncurve\n  public-key = "KEY"\n', "role 'root' is none of"),
        ('metadata\n  role = "relay"\ncurve\n  public-key = "KEY"\n', "viewer, operator or admin"),
        ('metadata\n  rolle = "admin"\ncurve\n  public-key = "KEY"\n', "did you mean 'role'"),
        ('metadata\n  until = "soon"\ncurve\n  public-key = "KEY"\n', "'soon' is no date"),
        ('metadata\n  addresses = "10/99"\ncurve\n  public-key = "KEY"\n', "is no network"),
        ('curve\n  public-key = "KEY"\n  secret-key = "KEY"\n', "has a secret key in it"),
        ("x" * 2_000_000, "too large"),
    ],
)
def test_a_damaged_file_admits_nobody_and_harms_no_other(
    folder: KeyFolder, content: str, says: str
) -> None:
    good = grant_for(new_key_pair())
    folder.authorize(good)
    path = folder.authorized / "client" / "bob.pub"
    path.write_text(content.replace("KEY", new_key_pair().public.decode()))
    with pytest.raises(ConfigError, match=says):
        folder.allow_list()
    said: list[ConfigError] = []
    assert folder.allow_list(strict=False, on_fault=said.append).grants == (good,)
    assert str(path) in str(said[0])
    assert str(said[0]) in wrong(folder)


def test_a_damaged_revocation_still_revokes_the_name(folder: KeyFolder) -> None:
    folder.authorize(grant_for(new_key_pair()))
    folder.revoked.mkdir()
    (folder.revoked / "ana.pub").write_text("torn")
    said: list[ConfigError] = []
    assert folder.allow_list(strict=False, on_fault=said.append).grants == ()
    assert len(said) == 1


def test_files_that_are_no_keys_are_left_alone(folder: KeyFolder) -> None:
    folder.authorize(grant_for(new_key_pair()))
    for name in (".ana.pub.swp", "ana.pub~", "README", ".bob.pub"):
        (folder.authorized / "client" / name).write_text("not a key")
    assert len(folder.allow_list().grants) == 1


def test_each_change_by_hand_is_noticed(folder: KeyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.authorize(grant_for(new_key_pair()))
    path = folder.authorized / "client" / "ana.pub"

    def settled() -> None:
        """As if all that was changed so far was changed long ago."""
        for each in (folder.revoked, folder.authorized / "client", path):
            if each.exists():
                os.utime(each, ns=(10**18, 10**18))
        folder.allow_list()
        assert not folder.changed()

    for each in ("relay", "bank"):
        os.utime(folder.authorized / each, ns=(10**18, 10**18))
    settled()
    path.write_text(path.read_text().replace("operator", "viewer"))
    assert folder.changed()
    settled()
    os.rename(path, path.with_name("bob.pub"))
    assert folder.changed()
    os.rename(path.with_name("bob.pub"), path)
    settled()
    folder.revoked.mkdir()
    assert folder.changed()
    settled()
    path.unlink()
    assert folder.changed()


def test_what_is_too_young_counts_as_changed(folder: KeyFolder) -> None:
    folder.authorize(grant_for(new_key_pair()))
    folder.allow_list()
    assert folder.changed()


def test_a_network_is_made_once(folder: KeyFolder) -> None:
    broker, owner = found_network(folder, "root")
    assert (broker.role, owner.role) == ("broker", "admin")
    assert folder.broker_keys() == (broker.pair.public,)
    assert folder.allow_list().grant_of(owner.grant.user) == owner.grant
    assert folder.default_identity == "root"
    assert check_folder(folder) == []
    with pytest.raises(Conflict, match="has the keys of a network already"):
        found_network(folder, "root")
    folder.check_network()
    with pytest.raises(ConfigError, match=r"those of network 'labmesh'.*LMH_NETWORK=labmesh"):
        KeyFolder(folder.path, "attic").check_network()


def test_a_network_whose_making_broke_off_is_finished(folder: KeyFolder) -> None:
    first, _ = found_network(folder, "root")
    (folder.authorized / "client" / "root.pub").unlink()
    (folder.trusted / "broker.pub").unlink()
    again, owner = found_network(folder, "root")
    assert again == first
    assert check_folder(folder) == []
    assert folder.grant_of("client", "root") == owner.grant


def test_a_key_is_replaced_with_its_limits(folder: KeyFolder) -> None:
    found_network(folder, "root")
    pair = folder.create("ana", "operator")
    folder.authorize(grant_for(pair, relays=("psu-*",)))
    done = rotate_key(folder, "ana")
    assert done.is_authorized
    assert done.former == pair
    assert folder.secret_of("ana") == done.identity.pair != pair
    fresh = folder.grant_of("client", "ana")
    assert fresh is not None
    assert fresh.relays == ("psu-*",)
    assert fresh.key.encode() == done.identity.pair.public
    assert folder.allow_list().revoked == {pair.public.decode()}
    (kept,) = (folder.own / "old").iterdir()
    assert mode(kept) == 0o600
    assert check_folder(folder) == []


def test_elsewhere_a_replaced_key_is_not_authorized(folder: KeyFolder) -> None:
    folder.create("ana", "operator")
    assert not rotate_key(folder, "ana").is_authorized
    assert not folder.keeps_list


def test_the_broker_s_key_is_replaced_in_two_steps(folder: KeyFolder) -> None:
    broker, _ = found_network(folder, "root")
    with pytest.raises(NotFound, match="no new key of the broker"):
        finish_broker_rotation(folder)
    coming = rotate_key(folder, "broker").identity.pair.public
    assert folder.broker_keys() == (broker.pair.public, coming)
    assert folder.secret_of("broker") == broker.pair
    with pytest.raises(ConfigError, match="exists already"):
        rotate_key(folder, "broker")
    assert finish_broker_rotation(folder).identity.pair.public == coming
    assert folder.broker_keys() == (coming,)
    assert folder.names() == ["broker", "root"]
    assert check_folder(folder) == []


def test_not_everybody_is_trusted_as_a_broker(folder: KeyFolder) -> None:
    for number in range(4):
        folder.pin_broker(new_key_pair().public, f"broker-{number}")
    with pytest.raises(ConfigError, match="5 keys of brokers, and 4 at most"):
        folder.pin_broker(new_key_pair().public)
    assert len(folder.broker_keys()) == 4
    (folder.trusted / "x.pub").write_text((folder.trusted / "broker-0.pub").read_text())
    with pytest.raises(ConfigError, match="5 keys of brokers, and 4 at most"):
        folder.broker_keys()
    with pytest.raises(ConfigError):
        folder.pin_broker(b"no key")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda keys: (keys.own / "x.pub").write_text("x"), "half a pair"),
        (lambda keys: (keys.trusted / "broker.pub").unlink(), "no broker is trusted"),
        (lambda keys: (keys.trusted / "broker.pub").write_text("x"), "line 1 is no line"),
        (lambda keys: keys.pin_broker(new_key_pair().public), "own key is not among those"),
        (lambda keys: keys.authorized.chmod(0o777), "every user may write"),
        (lambda keys: (keys.authorized / "client" / "root.pub").unlink(), "is not on the list"),
        (lambda keys: (keys.path / "network.toml").write_text("="), "cannot be read"),
        (lambda keys: (keys.path / "network.toml").write_text('name = "x"'), "of network 'x'"),
    ],
)
def test_what_is_wrong_with_a_folder_is_found(
    folder: KeyFolder, spoil: Callable[[KeyFolder], object], says: str
) -> None:
    found_network(folder, "root")
    assert wrong(folder) == []
    spoil(folder)
    assert any(says in each for each in wrong(folder)), wrong(folder)


def test_what_may_be_meant_so_is_a_note(folder: KeyFolder) -> None:
    found_network(folder, "root")
    twin = grant_for(new_key_pair(), "root", "relay")
    folder.authorize(twin)
    folder.authorize(grant_for(new_key_pair(), not_after=time.time() - 1))
    folder.public_path("root").unlink()
    folder.authorized.chmod(0o770)
    notes = " ".join(each.text for each in check_folder(folder))
    assert wrong(folder) == []
    for says in ("the name of relay and client", "is over", "is missing", "a group may write"):
        assert says in notes


def test_no_folder_is_a_fault_with_the_way_out(folder: KeyFolder) -> None:
    (only,) = wrong(folder)
    assert "'labmesh keys init' makes it" in only


def test_a_folder_that_cannot_be_written_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot make the folder .* LMH_KEYS_DIR"):
        KeyFolder(tmp_path / "file" / "keys").create("psu-1", "relay")


@pytest.mark.parametrize(
    ("text", "posix_s"),
    [
        ("1970-01-01", 86_400.0),
        ("1970-01-01T12:00:00", 43_200.0),
        ("1970-01-01T12:00:00+02:00", 36_000.0),
    ],
)
def test_a_date_is_good_all_its_day(text: str, posix_s: float) -> None:
    assert parse_until(text) == posix_s
    assert parse_until(until_words(posix_s)) == posix_s


@pytest.mark.parametrize("text", ["", "soon", "2027-13-01", "9999-12-31", "01.02.2027"])
def test_what_is_no_date_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no date; write the last day"):
        parse_until(text)
