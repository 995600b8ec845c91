"""Who may connect."""

from __future__ import annotations

import pytest
from zmq.utils import z85

from labmesh.transport.auth import admits, is_local
from labmesh.transport.key_pairs import NetworkKeys
from labmesh.transport.keys import Security

KEYS = NetworkKeys.from_password("word", "labmesh")
OTHER_KEYS = NetworkKeys.from_password("other word", "labmesh")

PROTECTED = Security("open")
INSECURE = Security("open", insecure=True)
PASSWORD = Security("password", keys=KEYS)

HERE, ELSEWHERE = "127.0.0.1", "10.0.0.7"


def raw(key: bytes) -> bytes:
    """A key as a handshake shows it."""
    return z85.decode(key)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1", "::ffff:7f00:1", "::1%lo"],
)
def test_loopback_addresses_are_local(address: str) -> None:
    assert is_local(address)


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.7",
        "::ffff:10.0.0.7",
        "fe80::1%eth0",
        "2001:db8::1",
        "0.0.0.0",
        "::",
        "169.254.1.1",
        "128.0.0.1",
        "",
        "localhost",
        "127.0.0.1.example.org",
        "0177.0.0.1",
        "127.1",
        "[::1]",
    ],
)
def test_nothing_else_is_local(address: str) -> None:
    assert not is_local(address)


@pytest.mark.parametrize(
    ("security", "mechanism", "address", "credentials", "admitted", "text"),
    [
        (PROTECTED, b"NULL", HERE, [], True, "local"),
        (PROTECTED, b"NULL", "::ffff:127.0.0.1", [], True, "local"),
        (PROTECTED, b"NULL", ELSEWHERE, [], False, "protected mode"),
        (PROTECTED, b"NULL", "", [], False, "protected mode"),
        (PROTECTED, b"CURVE", HERE, [raw(KEYS.client.public)], False, "without a password"),
        (PROTECTED, b"PLAIN", HERE, [b"user", b"word"], False, "without a password"),
        (INSECURE, b"NULL", ELSEWHERE, [], True, "anonymous"),
        (INSECURE, b"NULL", HERE, [], True, "local"),
        (INSECURE, b"CURVE", ELSEWHERE, [raw(KEYS.client.public)], False, "without a password"),
        (PASSWORD, b"CURVE", ELSEWHERE, [raw(KEYS.client.public)], True, "member"),
        (PASSWORD, b"CURVE", HERE, [raw(OTHER_KEYS.client.public)], False, "wrong network"),
        (PASSWORD, b"CURVE", HERE, [raw(KEYS.server.public)], False, "wrong network"),
        (PASSWORD, b"CURVE", HERE, [bytes(32)], False, "wrong network"),
        (PASSWORD, b"CURVE", HERE, [], False, "wrong network"),
        (PASSWORD, b"CURVE", HERE, [raw(KEYS.client.public)] * 2, False, "wrong network"),
        (PASSWORD, b"NULL", HERE, [], False, "has a password"),
        (PASSWORD, b"PLAIN", HERE, [b"user", b"word"], False, "has a password"),
    ],
)
def test_the_decision(
    security: Security,
    mechanism: bytes,
    address: str,
    credentials: list[bytes],
    admitted: bool,
    text: str,
) -> None:
    verdict, why = admits(security, mechanism, address, credentials)
    assert verdict is admitted
    assert text in why


def test_a_key_of_another_length_is_refused_before_it_is_compared() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        admits(PASSWORD, b"CURVE", HERE, [b"short"])
