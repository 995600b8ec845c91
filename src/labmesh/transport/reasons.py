"""Why a connection does not come about, in words: what happened, and what mends it.

libzmq tells little. What it tells, the mode of this side, and what the other side says of itself
before any handshake (:mod:`labmesh.transport.greeting`) make one sentence a cause.
"""

from __future__ import annotations

from labmesh.errors import AuthenticationError, LabmeshError, LinkLost
from labmesh.protocol.addresses import parse_connect
from labmesh.transport.greeting import Greeting
from labmesh.transport.keys import Mode

__all__ = ["bearer", "mismatch", "nobody", "not_reached", "other_key", "refusal", "wrong_protocol"]

_INTERNAL_ERROR = 500
_SAME = "LMH_NETWORK_PASSWORD and LMH_NETWORK must be the same on every node"
_PORTS = "requests go to the broker's rpc port, 5750 unless its file says otherwise"


def bearer(user: str) -> str:
    """Whose key it is, as people know it: ``client ana (1f3a56bc90de1278)``."""
    kind, _, rest = user.partition(":")
    name, _, mark = rest.partition("#")
    return f"{kind} {name} ({mark})"


def nobody(where: str) -> LabmeshError:
    """The port is closed."""
    return LinkLost(f"nobody answers at {where}: is it running?", met="nobody")


def refusal(where: str, mode: Mode, own: str, status: int = 400) -> LabmeshError:
    """The other side's authenticator said no.

    :param own: the user id of this side, in mode *keys*.
    :param status: what it answered; 500: it failed itself.
    """
    if status == _INTERNAL_ERROR:
        return AuthenticationError(
            f"{where} could not decide about this side: its authenticator failed. Its log has the "
            "traceback; restart it, and report this"
        )
    if mode == "keys":
        return AuthenticationError(
            f"{where} does not accept the key of {bearer(own)}: it is not on the allow-list, was "
            "revoked, its time is over, or it may not come from this address. 'labmesh keys list' "
            "on the broker's machine and the log there say which; 'labmesh keys invite NAME' there "
            "and 'labmesh keys join CODE' here bring in a new one"
        )
    if mode == "password":
        return AuthenticationError(
            f"{where} does not accept the key of this side: wrong network password? {_SAME}"
        )
    return AuthenticationError(
        f"{where} refused this host: it runs without keys or a password (protected mode) "
        "and admits only its own machine. Do one of: run 'labmesh keys init' there, and 'labmesh "
        "keys invite NAME'; or set LMH_NETWORK_PASSWORD to the same word on every node; or set "
        "LMH_INSECURE=1 there (insecure = true in its [security] table) if everybody on this "
        "network is trusted"
    )


def mismatch(where: str, mode: Mode, own: str) -> LabmeshError:
    """One side encrypts, the other does not."""
    if mode == "keys":
        return AuthenticationError(
            f"{where} runs without keys and without a password, but this side has the key of "
            f"{bearer(own)}: run 'labmesh keys init' or 'labmesh keys join CODE' there, or set "
            "LMH_SECURITY=open here"
        )
    if mode == "password":
        return AuthenticationError(
            f"{where} runs without a password, but LMH_NETWORK_PASSWORD is set here: set "
            "it there too, or unset it here"
        )
    return AuthenticationError(
        f"{where} wants the network password, or a key: set LMH_NETWORK_PASSWORD here to the word "
        "that its network uses; where nodes have keys, run 'labmesh keys join CODE' here with a "
        "code of 'labmesh keys invite' there"
    )


def other_key(where: str, mode: Mode) -> LabmeshError:
    """Both sides encrypt, and the other one does not have the key that it has to prove."""
    if mode == "keys":
        return AuthenticationError(
            f"{where} has another key than the one that is trusted here: its key was changed, its "
            "network has a password in place of keys, or somebody stands in for it. Compare the "
            "fingerprints ('labmesh keys list' on both machines); is the new one right, copy "
            "trusted/broker.pub from the broker's machine, or run 'labmesh keys join CODE' again"
        )
    return AuthenticationError(
        f"{where} has another network password (each handshake fails), or keys in place of a "
        f"password: {_SAME}; where nodes have keys, run 'labmesh keys join CODE' here"
    )


def wrong_protocol(where: str, code: int) -> LabmeshError:
    """What came is no ZeroMQ, or one that libzmq does not take."""
    return LinkLost(
        f"{where} does not speak labmesh (ZeroMQ protocol error {code:#x}): "
        f"is another program using this port? {_PORTS}"
    )


def not_reached(where: str, endpoint: str, met: Greeting) -> LabmeshError:
    """What is there instead of a node that takes part in a handshake.

    ``detail["met"]`` of the error is ``met.found``.
    """
    address = parse_connect(endpoint)
    host, port = address.host, address.port
    if met.found == "no such host":
        text = (
            f"the host name {host!r} of {where} is not known here (DNS: {met.said}): is it "
            "spelled right? Give the address in numbers, or enter the name into DNS or /etc/hosts"
        )
    elif met.found == "no name server":
        text = (
            f"the host name {host!r} of {where} cannot be looked up: no name server (DNS) answers. "
            "Give the address in numbers, or mend this computer's DNS"
        )
    elif met.found == "no way":
        text = (
            f"{where} does not answer: {met.said or 'nothing comes back'}. Is that computer on, "
            f"is {host} its address, and does a firewall let this host reach port {port}?"
        )
    elif met.found == "silence":
        text = (
            f"{where} does not answer: something listens there, but says nothing. Is it a node "
            f"that stands still, a tunnel's end, or another program that uses port {port}?"
        )
    elif met.found == "other":
        text = (
            f"{where} does not speak labmesh, it says {met.said!r}: another program uses port "
            f"{port}; {_PORTS}"
        )
    elif met.found == "ZeroMQ":
        text = (
            f"{where} speaks ZeroMQ, but breaks every handshake off: is port {port} another one, "
            f"such as that of its events? {_PORTS}"
        )
    elif met.found == "nobody":
        return nobody(where)
    else:
        text = (
            f"something answers at {where}, but breaks every handshake off: is another "
            f"program using port {port}, or is nothing behind it yet?"
        )
    return LinkLost(text, met=met.found)
