"""Addresses: bound, connected to, advertised; and every way to get one wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labmesh.errors import ProtocolError
from labmesh.protocol.addresses import (
    Address,
    advertised,
    check_endpoint,
    check_host,
    is_loopback,
    parse_bind,
    parse_connect,
)

READERS = [parse_bind, parse_connect, check_endpoint]


@pytest.mark.parametrize(
    ("text", "address", "for_zmq"),
    [
        ("tcp://*:5750", Address("*", 5750), "tcp://*:5750"),
        ("tcp://*:*", Address("*", 0), "tcp://*:*"),
        ("tcp://*:0", Address("*", 0), "tcp://*:*"),
        ("tcp://127.0.0.1:0", Address("127.0.0.1", 0), "tcp://127.0.0.1:*"),
        ("tcp://0.0.0.0:5750", Address("0.0.0.0", 5750), "tcp://0.0.0.0:5750"),
        ("tcp://[::1]:5750", Address("::1", 5750), "tcp://[::1]:5750"),
        ("tcp://[0:0:0:0:0:0:0:1]:*", Address("::1", 0), "tcp://[::1]:*"),
        ("tcp://[2001:DB8::A]:1", Address("2001:db8::a", 1), "tcp://[2001:db8::a]:1"),
        ("tcp://Lab-PC:65535", Address("lab-pc", 65535), "tcp://lab-pc:65535"),
        ("tcp://eth0:5750", Address("eth0", 5750), "tcp://eth0:5750"),
        ("tcp://psu_1.lab.example:1", Address("psu_1.lab.example", 1), "tcp://psu_1.lab.example:1"),
    ],
)
def test_an_address_to_bind(text: str, address: Address, for_zmq: str) -> None:
    assert parse_bind(text) == address
    assert address.zmq_bind == for_zmq
    assert parse_bind(address.zmq_bind) == address
    assert parse_bind(str(address)) == address


def test_the_endpoint_that_a_dual_stack_socket_reports_is_read_as_ipv4() -> None:
    assert parse_bind("tcp://[::ffff:127.0.0.1]:34567") == Address("127.0.0.1", 34567)
    assert parse_bind("tcp://[::ffff:0.0.0.0]:34567") == Address("0.0.0.0", 34567)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp://192.168.1.10:5750", Address("192.168.1.10", 5750)),
        ("tcp://lab-pc.example:5750", Address("lab-pc.example", 5750)),
        ("tcp://[fd00::1]:5750", Address("fd00::1", 5750)),
        ("tcp://169.254.3.4:5750", Address("169.254.3.4", 5750)),
        ("tcp://broker:5750", Address("broker", 5750)),
    ],
)
def test_an_address_to_connect_to(text: str, address: Address) -> None:
    assert parse_connect(text) == address
    assert parse_connect(text, "10.0.0.1") == address


@pytest.mark.parametrize(
    ("broker_address", "endpoint"),
    [
        ("127.0.0.1", "tcp://127.0.0.1:5750"),
        ("Broker-PC", "tcp://broker-pc:5750"),
        ("::1", "tcp://[::1]:5750"),
        ("[2001:db8::1]", "tcp://[2001:db8::1]:5750"),
    ],
)
def test_broker_stands_for_the_brokers_address(broker_address: str, endpoint: str) -> None:
    assert str(parse_connect("tcp://BROKER:5750", broker_address)) == endpoint


@pytest.mark.parametrize("missing", [None, ""])
def test_without_the_brokers_address_the_error_says_what_to_set(missing: str | None) -> None:
    with pytest.raises(
        ProtocolError, match=r"set broker_address \(in the file: \[broker\] address"
    ):
        parse_connect("tcp://BROKER:5750", missing)


@pytest.mark.parametrize("bad", ["*", "tcp://10.0.0.1:5750", "10.0.0.1:5750", "0.0.0.0", "a b"])
def test_a_bad_broker_address_is_named_as_such(bad: str) -> None:
    with pytest.raises(ProtocolError, match=r"^broker_address .*write a host alone"):
        parse_connect("tcp://BROKER:5750", bad)


SHAPES = [
    (None, "of type NoneType: it is not text"),
    (5750, "of type int: it is not text"),
    (b"tcp://lab:1", "of type bytes: it is not text"),
    ("", "the transport tcp:// is missing"),
    ("lab:5750", "the transport tcp:// is missing"),
    ("tcp:lab:5750", "the transport tcp:// is missing"),
    ("file:///etc/passwd", "transport 'file' is not supported, only tcp"),
    ("inproc://lab", "transport 'inproc' is not supported"),
    ("ipc:///tmp/lab", "transport 'ipc' is not supported"),
    ("TCP://lab:5750", "transport 'TCP' is not supported"),
    ("http://lab:80/x", "transport 'http' is not supported"),
    ("tcp://lab", "the port is missing"),
    ("tcp://[::1]", "the port is missing"),
    ("tcp://", "the port is missing"),
    ("tcp://:5750", "the host is missing"),
    ("tcp://lab:", "port '' is not a number from 1 to 65535"),
    ("tcp://lab:x", "port 'x' is not a number"),
    ("tcp://lab:-1", "port '-1' is not a number"),
    ("tcp://lab:65536", "port '65536' is not a number"),
    ("tcp://lab:999999", "port '999999' is not a number"),
    ("tcp://lab:05750", "port '05750' is not a number"),
    ("tcp://lab:00", "port '00' is not a number"),
    ("tcp://lab:1.5", "port '1.5' is not a number"),
    ("tcp://::1:5750", "an IPv6 host needs brackets"),
    ("tcp://lab:5750:5751", "an IPv6 host needs brackets"),
    ("tcp://[lab]:5750", "neither a host name nor an IP address"),
    ("tcp://[:]:5750", "neither a host name nor an IP address"),
    ("tcp://[fe80::1%eth0]:5750", "neither a host name nor an IP address"),
    ("tcp://-lab:5750", "neither a host name nor an IP address"),
    ("tcp://lab-:5750", "neither a host name nor an IP address"),
    ("tcp://lab..example:5750", "neither a host name nor an IP address"),
    ("tcp://eth0;lab:5750", "neither a host name nor an IP address"),
    (f"tcp://{'x' * 64}:5750", "neither a host name nor an IP address"),
    ("tcp://300.1.1.1:5750", "neither a host name nor an IP address"),
    ("tcp://127.1:5750", "neither a host name nor an IP address"),
    ("tcp://010.0.0.1:5750", "neither a host name nor an IP address"),
    ("tcp://2852039166:5750", "neither a host name nor an IP address"),
    ("tcp://0xA9FEA9FE:5750", "neither a host name nor an IP address"),
    ("tcp://lab.0x7f:5750", "neither a host name nor an IP address"),
    ("tcp://lab:5750/path", "nothing may follow the port"),
    ("tcp://lab:5750?x=1", "nothing may follow the port"),
    ("tcp://lab:5750#x", "nothing may follow the port"),
    ("tcp://la\\b:5750", "nothing may follow the port"),
    ("tcp://lab :5750", "a space, line break or control character"),
    (" tcp://lab:5750", "a space, line break or control character"),
    ("tcp://lab:5750\n", "a space, line break or control character"),
    ("tcp://lab\r\n:5750", "a space, line break or control character"),
    ("tcp://lab\0:5750", "a space, line break or control character"),
    ("tcp://caf\u00e9:5750", "characters outside ASCII"),
    ("tcp://lab:\u0661", "characters outside ASCII"),
    ("tcp://" + "x" * 10_240 + ":5750", "it has 10251 characters, at most 255 are allowed"),
]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(("text", "wrong"), SHAPES)
def test_a_wrong_address_is_refused_with_what_is_wrong_and_what_is_right(
    read: Callable[[object], Address], text: object, wrong: str
) -> None:
    with pytest.raises(ProtocolError) as refused:
        read(text)
    said = str(refused.value)
    assert wrong in said
    assert "; write it like tcp://" in said
    assert said.isprintable()
    assert said.isascii()
    assert len(said) < 300


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("text", ["tcp://anna:hunter2@lab:5750", "hunter2@tcp://lab:5750"])
def test_a_password_in_an_address_is_refused_and_not_repeated(
    read: Callable[[object], Address], text: str
) -> None:
    with pytest.raises(ProtocolError, match="a user name or password does not belong") as refused:
        read(text)
    assert "hunter2" not in str(refused.value)


def test_255_characters_are_allowed() -> None:
    host = ".".join(["x" * 60] * 4)
    text = f"tcp://{host}:5750"
    assert len(text) == 254
    assert parse_connect(text).host == host


NO_ONE_HOST = [
    ("tcp://*:5750", "'tcp://*:5750': * means every interface"),
    ("tcp://0.0.0.0:5750", "0.0.0.0 means every interface"),
    ("tcp://[::]:5750", ":: means every interface"),
    ("tcp://[::ffff:0.0.0.0]:5750", "means every interface"),
    ("tcp://224.0.0.1:5750", "224.0.0.1 is the address of a group"),
    ("tcp://[ff02::1]:5750", "ff02::1 is the address of a group"),
    ("tcp://255.255.255.255:5750", "is the address of a group"),
    ("tcp://lab:0", "must be a definite one"),
    ("tcp://lab:*", "must be a definite one"),
]


@pytest.mark.parametrize("read", [parse_connect, check_endpoint])
@pytest.mark.parametrize(("text", "wrong"), NO_ONE_HOST)
def test_one_connects_to_one_port_of_one_host(
    read: Callable[[object], Address], text: str, wrong: str
) -> None:
    with pytest.raises(ProtocolError) as refused:
        read(text)
    assert wrong in str(refused.value)


def test_broker_is_no_host_to_bind_or_to_advertise() -> None:
    with pytest.raises(ProtocolError, match="BROKER stands for a host to connect to"):
        parse_bind("tcp://BROKER:5750")
    with pytest.raises(ProtocolError, match="BROKER is no host"):
        check_endpoint("tcp://BROKER:5750")


@pytest.mark.parametrize(
    "text",
    [
        "tcp://169.254.169.254:80",
        "tcp://169.254.0.1:5750",
        "tcp://[::ffff:169.254.169.254]:80",
        "tcp://[fe80::1]:5750",
        "tcp://[febf::1]:5750",
    ],
)
def test_a_link_local_address_is_not_advertised(text: str) -> None:
    with pytest.raises(ProtocolError, match="a link-local address is not advertised"):
        check_endpoint(text)


@pytest.mark.parametrize(
    "text",
    ["tcp://127.0.0.1:1", "tcp://10.0.0.5:65535", "tcp://lab-pc:5850", "tcp://[2001:db8::1]:5850"],
)
def test_an_endpoint_of_one_host_is_taken(text: str) -> None:
    assert str(check_endpoint(text)) == text


def test_two_spellings_of_one_endpoint_are_equal() -> None:
    assert check_endpoint("tcp://LAB-pc:1") == check_endpoint("tcp://lab-PC:1")
    assert check_endpoint("tcp://[::ffff:a00:5]:1") == check_endpoint("tcp://10.0.0.5:1")
    assert check_endpoint("tcp://[FD00:0::1]:1") == check_endpoint("tcp://[fd00::1]:1")


@pytest.mark.parametrize(
    ("bound", "local_address", "endpoint"),
    [
        (Address("*", 5850), "10.0.0.5", "tcp://10.0.0.5:5850"),
        (Address("0.0.0.0", 5850), "lab-pc", "tcp://lab-pc:5850"),
        (Address("::", 5850), "10.0.0.5", "tcp://10.0.0.5:5850"),
        (Address("*", 5850), "fd00::5", "tcp://[fd00::5]:5850"),
        (Address("*", 5850), "[fd00::5]", "tcp://[fd00::5]:5850"),
        (Address("10.0.0.7", 5850), "127.0.0.1", "tcp://10.0.0.7:5850"),
        (Address("fd00::7", 5850), "127.0.0.1", "tcp://[fd00::7]:5850"),
        (Address("10.0.0.7", 5850), "*", "tcp://10.0.0.7:5850"),
    ],
)
def test_the_bound_host_is_advertised_when_it_is_one(
    bound: Address, local_address: str, endpoint: str
) -> None:
    assert advertised(bound, local_address) == endpoint
    assert str(check_endpoint(endpoint)) == endpoint


@pytest.mark.parametrize(
    ("bound", "local_address", "wrong"),
    [
        (Address("*", 0), "10.0.0.5", r"^tcp://\*:0 has no port yet: bind first"),
        (Address("*", 5850), "*", r"^local_address '\*': \* means every interface"),
        (Address("*", 5850), "0.0.0.0", "0.0.0.0 means every interface"),
        (Address("*", 5850), "", "neither a host name nor an IP"),
        (Address("*", 5850), "[lab-pc]", "neither a host name nor an IP"),
        (Address("*", 5850), "[::1", "neither a host name nor an IP"),
        (Address("*", 5850), "169.254.1.2", "link-local"),
        (Address("169.254.1.2", 5850), "10.0.0.5", "link-local"),
    ],
)
def test_what_others_would_refuse_is_not_advertised(
    bound: Address, local_address: str, wrong: str
) -> None:
    with pytest.raises(ProtocolError, match=wrong):
        advertised(bound, local_address)


def test_a_host_is_text() -> None:
    with pytest.raises(ProtocolError, match=r"^host of type int: it is neither"):
        check_host(5)


@pytest.mark.parametrize(
    ("address", "wildcard", "ipv6"),
    [
        (Address("*", 1), True, False),
        (Address("0.0.0.0", 1), True, False),
        (Address("::", 1), True, True),
        (Address("::1", 1), False, True),
        (Address("lab-pc", 1), False, False),
    ],
)
def test_an_address_tells_its_kind(address: Address, wildcard: bool, ipv6: bool) -> None:
    assert address.is_wildcard is wildcard
    assert address.is_ipv6 is ipv6


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.8.9.10",
        "::1",
        "[::1]",
        "0:0:0:0:0:0:0:1",
        "::ffff:127.0.0.1",
        "[::FFFF:127.0.0.1]",
        "localhost",
        "LocalHost",
    ],
)
def test_loopback_is_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        "10.0.0.5",
        "::ffff:10.0.0.5",
        "fd00::1",
        "0.0.0.0",
        "::",
        "*",
        "",
        "127.1",
        "2130706433",
        "localhost.example",
        "127.0.0.1.example",
        "::1%eth0",
        "127.0.0.1\n",
    ],
)
def test_anything_else_is_not(host: str) -> None:
    assert not is_loopback(host)


@given(st.text(alphabet="tcp:/*[]0123456789abBROKE.%@-_\n ", max_size=30) | st.text(max_size=300))
def test_any_text_is_an_address_or_a_protocol_error(text: str) -> None:
    for read in READERS:
        for candidate in (text, f"tcp://{text}", f"tcp://{text}:5750"):
            try:
                address = read(candidate)
            except ProtocolError:
                continue
            assert read(str(address)) == address


@given(
    st.ip_addresses().map(str) | st.from_regex(r"[a-z][a-z0-9]{0,20}", fullmatch=True),
    st.integers(1, 65535),
)
def test_what_is_advertised_is_what_is_connected_to(host: str, port: int) -> None:
    try:
        endpoint = advertised(Address("*", port), host)
    except ProtocolError:
        return
    assert parse_connect(endpoint) == check_endpoint(endpoint)
    assert parse_connect(endpoint).port == port
