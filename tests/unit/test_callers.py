"""Whose call it is, as far as anybody said so."""

from __future__ import annotations

from labmesh.protocol.leases import Leases
from labmesh.protocol.messages import Ping
from labmesh.protocol.open_call import OpenCall
from labmesh.serving.callers import Callers
from labmesh.transport.answering import Origin


def opened(owner: object, user: str = "", address: str = "") -> OpenCall:
    origin = Origin(b"\0peer", False, False, "1", user, address)
    return OpenCall(owner, origin, "1", "measure", 1.0, True, 0.0)


def greet(callers: Callers, session: str, name: str) -> None:
    origin = Origin(b"\0peer", False, False, "1")
    callers.greet(Ping(id="ping", session=session, caller=name), origin)


def test_the_best_name_that_is_known() -> None:
    leases = Leases("Inst-0")
    callers = Callers(leases)
    alice, bob, by_hand = ("", "a"), ("", "b"), b"\0peer"
    greet(callers, "a", "alice")
    greet(callers, "b", "")
    greet(callers, "", "nobody's")
    leases.acquire(bob, ttl_s=1.0, holder="bob, who told it with his lease", note="", now=0.0)
    assert callers.name_of(opened(alice)) == "alice"
    assert callers.name_of(opened(bob)) == "bob, who told it with his lease"
    assert callers.name_of(opened(by_hand)) == ""
    assert callers.name_of(opened(by_hand, "key:carol", "10.0.0.7")) == "key:carol"
    assert callers.name_of(opened(by_hand, "", "10.0.0.7")) == "10.0.0.7"


def test_only_the_last_names_are_kept() -> None:
    callers = Callers(Leases("Inst-0"))
    greet(callers, "first", "first")
    greet(callers, "again", "again")
    for number in range(4095):
        greet(callers, str(number), "somebody")
        if number == 4000:
            greet(callers, "again", "again, under another name")
    assert callers.name_of(opened(("", "first"))) == ""
    assert callers.name_of(opened(("", "again"))) == "again, under another name"
