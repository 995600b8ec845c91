"""Where a spare broker is, as people write it."""

from __future__ import annotations

import pytest

from labmesh.errors import ProtocolError
from labmesh.protocol.addresses import Address
from labmesh.protocol.spare import check_spare, shifted, spare_rpc

FIRST = "tcp://lab-pc:6750"


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("", ""),
        ("  ", ""),
        ("lab-pc2", "tcp://lab-pc2:6750"),
        (" lab-pc2:7750 ", "tcp://lab-pc2:7750"),
        ("tcp://lab-pc2", "tcp://lab-pc2:6750"),
        ("lab-pc:6760", "tcp://lab-pc:6760"),
        ("fe80::1", "tcp://[fe80::1]:6750"),
        ("[2001:db8::1]", "tcp://[2001:db8::1]:6750"),
        ("[2001:db8::1]:7000", "tcp://[2001:db8::1]:7000"),
    ],
)
def test_the_spare_has_the_port_of_the_first_unless_it_says_another(
    written: str, address: str
) -> None:
    assert spare_rpc(written, FIRST) == address
    check_spare(written)


@pytest.mark.parametrize("written", ["lab pc", "lab-pc2:0", "lab-pc2:70000", "*", "a@b", "1.2.3"])
def test_what_is_no_place_is_refused(written: str) -> None:
    with pytest.raises(ProtocolError, match="like lab-pc2, or lab-pc2:5750"):
        spare_rpc(written, FIRST)
    with pytest.raises(ProtocolError):
        check_spare(written)


@pytest.mark.parametrize("written", ["lab-pc", "LAB-PC:6750", "tcp://lab-pc:6750"])
def test_the_first_is_no_spare_of_itself(written: str) -> None:
    with pytest.raises(ProtocolError, match="so is the first: name another host or port"):
        spare_rpc(written, FIRST)


def test_ports_of_a_spare_on_the_same_machine() -> None:
    assert shifted(Address("*", 5751), 1000) == Address("*", 6751)
    assert shifted(Address("*", 0), 1000) == Address("*", 0)
    for by in (-5751, 60_000):
        with pytest.raises(ProtocolError, match="name another spare port"):
            shifted(Address("*", 5751), by)
