"""Who may do what: every role, action and door; limits of a key; revocation; own topics."""

from __future__ import annotations

import re
from typing import get_args

import msgspec
import pytest
from zmq.utils import z85

from labmesh.errors import ConfigError, Forbidden, ProtocolError
from labmesh.protocol import access, topics
from labmesh.protocol.access import (
    ACTIONS,
    DOORS,
    Action,
    AllowList,
    Door,
    Grant,
    Role,
    fingerprint,
    may_publish,
    parse_network,
)
from labmesh.protocol.codec import Codec
from labmesh.protocol.messages import REPLIES, AccessList

NOW = 1_000.0
HOME = "192.168.1.7"


def key(number: int) -> str:
    return z85.encode(bytes([number]) * 32).decode()


def grant(role: Role = "operator", name: str = "ana", number: int = 1, **limits: object) -> Grant:
    return Grant(name=name, role=role, key=key(number), **limits)  # type: ignore[arg-type]


def refused(says: str) -> pytest.RaisesContext[Forbidden]:
    return pytest.raises(Forbidden, match=says)


TABLE = {
    line.split(":")[0].split(" ")[0]: line.split()[-6:]
    for line in re.findall(r"^\w+.*(?:yes|no) +(?:yes|no)$", access.__doc__ or "", re.MULTILINE)
}


@pytest.mark.parametrize("action", get_args(Action))
def test_each_role_may_do_what_the_table_says_and_nothing_else(action: Action) -> None:
    roles: tuple[Role, ...] = get_args(Role)
    assert len(TABLE) == len(get_args(Action))
    for role, word in zip(roles, TABLE[action], strict=True):
        one = grant(role)
        own = {"kind": role, "node_id": "ana"} if action == "register" else {}
        allowed = AllowList([one])
        assert (action in ACTIONS[role]) is (word == "yes")
        if word == "yes":
            allowed.check(one.user, action, now=NOW, **own)
        else:
            with refused(f"^{role} ana may not"):
                allowed.check(one.user, action, now=NOW, **own)


def test_a_refusal_names_the_roles_that_may() -> None:
    one = grant("viewer")
    with refused(
        "viewer ana may not call methods that change something: that is for operator and admin; ask"
    ):
        AllowList([one]).check(one.user, "write", now=NOW)
    with refused("that is for operator, admin, relay and bank"):
        AllowList([one]).check(one.user, "upload", now=NOW)
    operator = grant("operator")
    with refused("may not break a lease: that is for admin;"):
        AllowList([operator]).check(operator.user, "break", now=NOW)


@pytest.mark.parametrize("door", get_args(Door))
def test_each_door_lets_its_roles_in(door: Door) -> None:
    people, members = {"viewer", "operator", "admin"}, {"relay", "bank"}
    expected = {
        "directory": people | members,
        "xpub": people | members,
        "xsub": members,
    }.get(door, people | members | {"broker"})
    assert DOORS[door] == expected
    for role in get_args(Role):
        allowed = AllowList([grant(role)])
        if role in expected:
            assert allowed.admit(key(1), door, HOME, NOW) == grant(role)
        else:
            with refused(f"{role} ana has no business"):
                allowed.admit(key(1), door, HOME, NOW)


def test_nobody_comes_in_at_a_door_that_does_not_exist() -> None:
    with refused("'attic'"):
        AllowList([grant("admin")]).admit(key(1), "attic", HOME, NOW)


def test_a_user_is_the_kind_the_name_and_the_key() -> None:
    assert grant("viewer").user == f"client:ana#{fingerprint(key(1))}"
    assert grant("admin").user == grant("viewer").user
    assert grant("relay", "psu-1").user.startswith("relay:psu-1#")
    assert grant("bank", number=2).user == f"bank:ana#{fingerprint(key(2))}"
    assert grant("broker").kind == "broker"
    longest = Grant(name="n" * 128, role="broker", key=key(1)).user
    assert len(longest) <= 255
    assert longest.isascii()
    assert re.fullmatch("[0-9a-f]{16}", fingerprint(key(1)))


def test_a_revoked_key_is_nobody_whatever_the_list_says() -> None:
    one, other = grant(number=1), grant(name="bob", number=2)
    allowed = AllowList([one, other], revoked=[one.key], version="v2")
    assert allowed.version == "v2"
    assert allowed.grant_of(one.user) is None
    assert allowed.grant_of(other.user) is other
    with refused("was revoked"):
        allowed.admit(one.key, "relay", HOME, NOW)
    with refused("this key was revoked; ask"):
        allowed.check(one.user, "look", now=NOW)
    allowed.check(other.user, "look", now=NOW)
    assert allowed.grants == (one, other)


def test_a_replaced_key_is_another_user() -> None:
    former, fresh = grant(number=1), grant(number=2)
    allowed = AllowList([fresh])
    assert former.user != fresh.user
    for user in (former.user, "member", "", "client:ana", "#", "client:ana#"):
        assert allowed.grant_of(user) is None
        with refused("not, or no longer, on"):
            allowed.check(user, "look", now=NOW)
    with refused("is not on the allow-list"):
        allowed.admit(former.key, "relay", HOME, NOW)


def test_an_empty_list_lets_nobody_in() -> None:
    with refused("not on the allow-list"):
        AllowList([]).admit(key(1), "directory", HOME, NOW)


def test_a_key_under_two_names_is_no_list() -> None:
    with pytest.raises(ConfigError, match="same key stands for operator ana and for relay psu-1"):
        AllowList([grant(), grant("relay", "psu-1")])


def test_the_time_of_a_key_ends() -> None:
    one = grant(not_after=NOW)
    allowed = AllowList([one])
    allowed.check(one.user, "write", now=NOW)
    assert allowed.admit(one.key, "relay", HOME, NOW)
    with refused("time of the key of operator"):
        allowed.check(one.user, "look", now=NOW + 0.001)
    with refused("is over; ask"):
        allowed.admit(one.key, "relay", HOME, NOW + 1)


@pytest.mark.parametrize(
    ("networks", "address", "is_let_in"),
    [
        (["192.168.1.0/24"], "192.168.1.7", True),
        (["192.168.1.0/24"], "192.168.2.7", False),
        (["192.168.1.0/24"], "::ffff:192.168.1.7", True),
        (["192.168.1.0/24"], "::1", False),
        (["10.0.0.0/8", "192.168.1.7"], "192.168.1.7", True),
        (["192.168.1.7"], "192.168.1.8", False),
        (["192.168.1.99/24"], "192.168.1.7", True),
        (["fe80::/10"], "fe80::1%eth0", True),
        (["fe80::/10"], "192.168.1.7", False),
        (["0.0.0.0/0"], "", False),
        (["0.0.0.0/0"], "attic", False),
        ([], "", True),
    ],
)
def test_a_key_is_good_from_its_networks(
    networks: list[str], address: str, is_let_in: bool
) -> None:
    allowed = AllowList([grant(addresses=tuple(networks))])
    if is_let_in:
        assert allowed.admit(key(1), "relay", address, NOW)
    else:
        with refused("is good from"):
            allowed.admit(key(1), "relay", address, NOW)


@pytest.mark.parametrize("text", ["", "attic", "10.0.0.0/33", "10.0.0", "10.0.0.0/a", "1" * 500])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is no network; write an address such as 192\.168"):
        parse_network(text)
    with pytest.raises(ConfigError):
        AllowList([grant(addresses=(text,))])


@pytest.mark.parametrize(
    ("limits", "use", "says"),
    [
        ({"relays": ("psu-*", "Inst-1")}, {"relay": "psu-7"}, ""),
        ({"relays": ("psu-*", "Inst-1")}, {"relay": "Inst-1"}, ""),
        ({"relays": ("psu-*", "Inst-1")}, {"relay": "Inst-10"}, r"relays psu-\*, Inst-1 only"),
        ({"relays": ("psu-*",)}, {"relay": "PSU-7"}, "only"),
        ({"relays": ("psu-*",)}, {}, ""),
        ({"methods_deny": ("set_*",)}, {"relay": "r", "method": "measure"}, ""),
        ({"methods_deny": ("set_*",)}, {"relay": "r", "method": "set_output"}, "'set_output'"),
        ({"methods_deny": ("set_*",)}, {"relay": "r", "method": "ch01.set_output"}, "set_output'"),
        ({"methods_deny": ("ch02.*",)}, {"relay": "r", "method": "ch01.set_output"}, ""),
        ({"methods_deny": ("ch01.*",)}, {"relay": "r", "method": "ch01.set_output"}, "set_output'"),
        ({"methods_deny": ("*",)}, {"relay": "r"}, ""),
        ({}, {"relay": "anything", "method": "set_output"}, ""),
    ],
)
def test_a_key_has_limits(
    limits: dict[str, tuple[str, ...]], use: dict[str, str], says: str
) -> None:
    one = grant(**limits)
    allowed = AllowList([one])
    if says:
        with refused(says):
            allowed.check(one.user, "write", now=NOW, **use)
    else:
        allowed.check(one.user, "write", now=NOW, **use)


@pytest.mark.parametrize(
    ("kind", "node_id", "may"),
    [
        ("relay", "psu-1", True),
        ("relay", "psu-2", False),
        ("relay", "psu-10", False),
        ("bank", "psu-1", False),
        ("", "psu-1", False),
        ("relay", "", False),
    ],
)
def test_a_node_registers_as_itself(kind: str, node_id: str, may: bool) -> None:
    one = grant("relay", "psu-1")
    allowed = AllowList([one])

    def register() -> None:
        allowed.check(one.user, "register", now=NOW, node_id=node_id, kind=kind)

    if may:
        register()
    else:
        with refused("relay psu-1 may register as that alone, not as"):
            register()


def test_a_node_publishes_its_own_families_under_its_own_id() -> None:
    for role in get_args(Role):
        one = grant(role, "psu-1")
        for family in topics.FAMILIES:
            own = family in topics.FAMILIES_OF.get(role, ())
            assert may_publish(one, f"{family}.psu-1".encode()) is own
            for other in ("psu-10", "psu", "PSU-1", "psu-1.", "psu-1\0", ""):
                assert not may_publish(one, f"{family}.{other}".encode())
    one = grant("relay", "psu-1")
    for topic in (b"", b"state", b"state.", b".psu-1", b"\xff.psu-1", b"state..psu-1"):
        assert not may_publish(one, topic)
    assert may_publish(grant("relay", "a.b"), b"state.a.b")


GOOD = {"name": "ana", "role": "viewer", "key": key(1)}


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../ana"},
        {"name": ""},
        {"name": "n" * 129},
        {"role": "root"},
        {"role": ""},
        {"key": key(1)[:-1]},
        {"key": key(1) + "0"},
        {"key": "'" * 40},
        {"key": key(1) + "\n"},
        {"relays": ["x" * 129]},
        {"relays": [""]},
        {"relays": ["x"] * 65},
        {"methods_deny": "set_*"},
        {"addresses": ["1" * 65]},
        {"not_after": "tomorrow"},
    ],
    ids=repr,
)
def test_a_list_of_a_hostile_broker_is_not_taken(change: dict[str, object]) -> None:
    codec = Codec(REPLIES)

    def told(grants: list[dict[str, object]]) -> object:
        message = {"type": "access_list", "id": "1", "version": "v", "grants": grants}
        return codec.decode([msgspec.msgpack.encode(message)]).message

    taken = told([GOOD])
    assert isinstance(taken, AccessList)
    assert taken.grants == (Grant(name="ana", role="viewer", key=key(1)),)
    with pytest.raises(ProtocolError):
        told([GOOD, GOOD | change])
