"""A machine joins a network with a code, over real sockets and with real folders of keys.

The unit tests have the code and the life of an invitation; here is what crosses the wire, and what
is on both disks when one side dies in the middle.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest
import zmq
from tests.support.processes import free_ports
from tests.support.promptness import SLACK_S
from tests.support.sniffing import Sniffer

from labmesh.access.broker_place import broker_place
from labmesh.access.keyring import KeyFolder
from labmesh.access.pairing import enter, terms_for
from labmesh.errors import (
    AuthenticationError,
    ConfigError,
    Conflict,
    LabmeshError,
    LinkLost,
    NotSent,
    OutcomeUnknown,
    ProtocolError,
)
from labmesh.protocol.addresses import Address
from labmesh.protocol.messages import Grant
from labmesh.protocol.pairing import MAX_WRONG_CODES, SECRET_BYTES, Invitation, PairingCode, Terms
from labmesh.transport.joining import Joining
from labmesh.transport.pairing import OpenInvitation

HERE = "127.0.0.1"
#: A person is told within 2 s why it does not work.
TOLD_S = 2.0 + SLACK_S
LIMIT_S = 20.0


class Died(BaseException):
    """Stands for the end of a process: nothing after it runs, nothing is tidied up."""


class Inviting:
    """An invitation that is open in a thread, as the command has it; a context manager."""

    def __init__(self, folder: KeyFolder, port: int, name: str = "ana", role: str = "operator"):
        self.folder = folder
        self.terms = terms_for(folder, name, role, broker_port=5750)
        self.code = PairingCode(HERE, port, secrets.token_bytes(SECRET_BYTES))
        self.offset_s = 0.0
        self.invitation = Invitation(self.terms, ends_at=self.clock() + 600)
        self.authorize: Callable[[Grant, str], object] = lambda grant, _: folder.authorize(grant)
        self.ending: str | BaseException = "open"

    def clock(self) -> float:
        return time.monotonic() + self.offset_s

    def __enter__(self) -> Self:
        self._opened = OpenInvitation(self.code, Address(HERE, self.code.port))
        self._thread = threading.Thread(target=self._wait, name="inviting")
        self._thread.start()
        return self

    def _wait(self) -> None:
        try:
            with self._opened:
                self.ending = self._opened.wait(self.invitation, self._told, clock=self.clock)
        except Died as exc:
            self.ending = exc

    def _told(self, grant: Grant, address: str) -> None:
        assert address == HERE
        self.authorize(grant, address)

    def over(self) -> str | BaseException:
        """How it ended; waits for that."""
        self._thread.join(LIMIT_S)
        return self.ending

    def __exit__(self, *_: object) -> None:
        self.offset_s = 10_000.0
        self._thread.join(LIMIT_S)

    @property
    def admitted(self) -> list[str]:
        """Who is on the allow-list, with the fingerprint of the key."""
        return [each.user for each in self.folder.allow_list().grants]


class DiesBeforeConfirming(Joining):
    def confirm(self, key: str) -> None:
        raise Died


class DiesBeforeEnding(Joining):
    def end(self, key: str) -> None:
        raise Died


@pytest.fixture
def broker(tmp_path: Path) -> KeyFolder:
    """The keys of the broker's machine."""
    folder = KeyFolder(tmp_path / "broker")
    folder.create("broker", "broker")
    return folder


@pytest.fixture
def laptop(tmp_path: Path) -> KeyFolder:
    """The folder of keys of the machine that joins; it is not there yet."""
    return KeyFolder(tmp_path / "laptop")


def join(
    folder: KeyFolder, code: PairingCode, kind: type[Joining] = Joining, host: str = ""
) -> Terms:
    with kind(code, host) as joining:
        terms = joining.ask()
        enter(folder, terms, Address(joining.host, terms.broker_port), joining)
    return terms


def refusal(kind: type[LabmeshError], folder: KeyFolder, code: PairingCode, host: str = "") -> str:
    """What somebody is told who cannot join; in time, and with nothing left behind."""
    before = left_in(folder)
    began = time.monotonic()
    with pytest.raises(kind) as caught:
        join(folder, code, host=host)
    assert time.monotonic() - began < TOLD_S
    assert left_in(folder) == before
    assert code.text not in str(caught.value)
    return str(caught.value)


def left_in(folder: KeyFolder) -> dict[str, str]:
    files = (each for each in folder.path.rglob("*") if each.is_file())
    return {str(each.relative_to(folder.path)): each.read_text() for each in files}


def own_user(folder: KeyFolder, name: str = "ana") -> str:
    return folder.identity(name).grant.user


def hears_the_end(joining: Joining) -> None:
    """Wait until the end of the connection has come through."""
    assert joining._events.poll(int(LIMIT_S * 1000))


def another(code: PairingCode, **changes: int) -> PairingCode:
    """A code for the same place with another secret."""
    return PairingCode(code.host, changes.get("port", code.port), bytes(SECRET_BYTES))


# ── it works ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("name", "role"), [("ana", "viewer"), ("psu-1", "relay")])
def test_a_machine_joins_and_the_code_is_used_up(
    broker: KeyFolder, laptop: KeyFolder, name: str, role: str
) -> None:
    (port,) = free_ports(1)
    with Inviting(broker, port, name, role) as inviting:
        terms = join(laptop, inviting.code)
        assert inviting.over() == "joined"
        assert (terms.name, terms.role, terms.network) == (name, role, "labmesh")
        assert inviting.admitted == [own_user(laptop, name)]
    (grant,) = broker.allow_list().grants
    assert (grant.name, grant.role) == (name, role)
    assert laptop.identity(name).role == role
    assert laptop.broker_keys() == (broker.secret_of("broker").public,)
    assert broker_place(laptop.path) == Address(HERE, 5750)
    assert stat.S_IMODE(laptop.secret_path(name).stat().st_mode) == 0o600
    assert "no invitation is open" in refusal(LinkLost, laptop, inviting.code)


def test_two_invitations_at_once_on_two_ports(
    broker: KeyFolder, laptop: KeyFolder, tmp_path: Path
) -> None:
    first_port, second_port = free_ports(2)
    with (
        Inviting(broker, first_port, "ana") as first,
        Inviting(broker, second_port, "bo") as second,
    ):
        mixed = PairingCode(HERE, second_port, first.code.secret)
        assert "has another code" in refusal(AuthenticationError, laptop, mixed)
        join(KeyFolder(tmp_path / "bo"), second.code)
        join(laptop, first.code)
        assert (first.over(), second.over()) == ("joined", "joined")
    assert [each.name for each in broker.allow_list().grants] == ["ana", "bo"]


def test_an_invitation_on_a_port_that_is_taken(broker: KeyFolder) -> None:
    with socket.create_server((HERE, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Conflict, match=f"port {port} .* is already in use"):
            OpenInvitation(PairingCode(HERE, port, bytes(SECRET_BYTES)), Address(HERE, port))


def test_a_sniffer_learns_nothing(broker: KeyFolder, laptop: KeyFolder) -> None:
    (port,) = free_ports(1)
    with Inviting(broker, port, "very-secret-name") as inviting, Sniffer([port]) as sniffer:
        join(laptop, inviting.code)
        inviting.over()
        sniffer.stop()
    pair, code = laptop.secret_of("very-secret-name"), inviting.code
    secret_words = [
        code.text.encode(),
        code.text.replace("-", "").encode(),
        code.secret,
        b"very-secret-name",
        b"operator",
        b"invited",
        b"confirm_join",
        pair.public,
        pair.secret,
        broker.secret_of("broker").public,
    ]
    assert [word for word in secret_words if sniffer.count(word)] == []
    # What is sent in plain is heard: the greeting of each side.
    assert sniffer.count(b"CURVE") == 2


# ── who has not the code ────────────────────────────────────────────────────────────────────────


def test_wrong_codes_end_it_and_whoever_merely_knocks_does_not(
    broker: KeyFolder, laptop: KeyFolder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    (port,) = free_ports(1)
    with Inviting(broker, port) as inviting:
        for _ in range(2 * MAX_WRONG_CODES):
            with socket.create_connection((HERE, port)) as scanner:
                scanner.sendall(b"GET / HTTP/1.0\r\n\r\n" * 10)
                # Until it is cut off.
                with contextlib.suppress(ConnectionResetError):
                    while scanner.recv(4096):
                        pass
        without_keys(port)
        assert inviting.invitation.wrong_codes == 0
        for _ in range(MAX_WRONG_CODES - 1):
            assert inviting.ending == "open"
            said = refusal(AuthenticationError, laptop, another(inviting.code))
            assert "has another code" in said
        # It may be gone before it could be asked who it is.
        said = refusal(LabmeshError, laptop, another(inviting.code))
        assert "has another code" in said or "has just ended" in said
        assert inviting.over() == "wrong codes"
        assert inviting.admitted == []
        assert "no invitation is open" in refusal(LinkLost, laptop, inviting.code)


def without_keys(port: int) -> None:
    """A plain ZeroMQ socket that tries, until it hears that this needs another mechanism."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as plain:
        plain.linger = 0
        events = plain.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        )
        plain.connect(f"tcp://{HERE}:{port}")
        assert events.poll(int(LIMIT_S * 1000))
        plain.disable_monitor()
        events.close(0)


def test_nobody_there_and_somebody_else_there(laptop: KeyFolder) -> None:
    (free,) = free_ports(1)
    code = PairingCode(HERE, free, bytes(SECRET_BYTES))
    assert "no invitation is open" in refusal(LinkLost, laptop, code)
    with socket.create_server((HERE, 0)) as silent:
        port = silent.getsockname()[1]
        said = refusal(LinkLost, laptop, another(code, port=port))
        assert "something answers" in said
    said = refusal(LinkLost, laptop, code, "no-such-machine.invalid")
    assert "no machine called no-such-machine.invalid" in said
    nowhere = PairingCode("", free, bytes(SECRET_BYTES))
    assert "give it with --broker HOST" in refusal(ProtocolError, laptop, nowhere)


def test_an_invitation_whose_time_is_over(broker: KeyFolder, laptop: KeyFolder) -> None:
    (port,) = free_ports(1)
    with Inviting(broker, port) as inviting:
        inviting.offset_s = 599.0
        with Joining(inviting.code) as joining:
            terms = joining.ask()
            inviting.offset_s = 600.0
            assert inviting.over() == "expired"
            hears_the_end(joining)
            with pytest.raises(NotSent, match="was closed"):
                enter(laptop, terms, Address(HERE, 5750), joining)
        assert left_in(laptop) == {}
        assert inviting.admitted == []
        assert "no invitation is open" in refusal(LinkLost, laptop, inviting.code)


# ── one side dies in the middle ─────────────────────────────────────────────────────────────────


def test_a_machine_that_dies_before_it_confirmed_joins_again(
    broker: KeyFolder, laptop: KeyFolder
) -> None:
    (port,) = free_ports(1)
    with Inviting(broker, port) as inviting:
        with pytest.raises(Died):
            join(laptop, inviting.code, DiesBeforeConfirming)
        assert inviting.admitted == []
        kept = own_user(laptop)
        join(laptop, inviting.code)
        assert inviting.over() == "joined"
        assert inviting.admitted == [kept] == [own_user(laptop)]


def test_a_machine_that_dies_after_it_confirmed_joins_again_and_no_other_does(
    broker: KeyFolder, laptop: KeyFolder, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    with Inviting(broker, port) as inviting:
        with pytest.raises(Died):
            join(laptop, inviting.code, DiesBeforeEnding)
        assert inviting.admitted == [own_user(laptop)]
        assert inviting.ending == "open"
        said = refusal(Conflict, KeyFolder(tmp_path / "thief"), inviting.code)
        assert "used already" in said
        join(laptop, inviting.code)
        assert inviting.over() == "joined"
        assert inviting.admitted == [own_user(laptop)]


def test_the_inviting_side_dies_before_anything_was_confirmed(
    broker: KeyFolder, laptop: KeyFolder
) -> None:
    (port,) = free_ports(1)
    with Inviting(broker, port) as inviting, Joining(inviting.code) as joining:
        terms = joining.ask()
        inviting.offset_s = 10_000.0
        inviting.over()
        hears_the_end(joining)
        with pytest.raises(NotSent, match="was closed"):
            enter(laptop, terms, Address(HERE, 5750), joining)
    assert left_in(laptop) == {}
    assert broker.allow_list().grants == ()


@pytest.mark.parametrize("written", [True, False], ids=["written", "not written"])
def test_the_inviting_side_dies_before_it_could_answer(
    broker: KeyFolder, laptop: KeyFolder, written: bool
) -> None:
    (port,) = free_ports(1)

    def die(grant: Grant, _: str) -> None:
        if written:
            broker.authorize(grant)
        raise Died

    with Inviting(broker, port) as inviting:
        inviting.authorize = die
        with pytest.raises(OutcomeUnknown, match="may have admitted this machine, or not"):
            join(laptop, inviting.code)
        assert isinstance(inviting.over(), Died)
        assert bool(inviting.admitted) is written
    kept = own_user(laptop)
    with Inviting(broker, port) as again:
        join(laptop, again.code)
        assert again.over() == "joined"
        assert again.admitted == [kept]


def test_a_list_that_cannot_be_written_leaves_nothing_and_the_code_good(
    broker: KeyFolder, laptop: KeyFolder
) -> None:
    (port,) = free_ports(1)

    def full(grant: Grant, _: str) -> None:
        raise ConfigError("cannot write: no space left on device")

    with Inviting(broker, port) as inviting:
        writes, inviting.authorize = inviting.authorize, full
        assert "no space left" in refusal(ConfigError, laptop, inviting.code)
        inviting.authorize = writes
        join(laptop, inviting.code)
        assert inviting.over() == "joined"


# ── what is on the disk already ─────────────────────────────────────────────────────────────────


def test_a_folder_that_does_not_fit_is_left_as_it_is(
    broker: KeyFolder, laptop: KeyFolder, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    with Inviting(broker, port) as inviting:
        laptop.create("ana", "relay")
        assert "is the key of a relay" in refusal(ConfigError, laptop, inviting.code)
        stranger = KeyFolder(tmp_path / "stranger")
        stranger.pin_broker(zmq.curve_keypair()[0])
        said = refusal(ConfigError, stranger, inviting.code)
        assert "trusts another broker" in said
        attic = KeyFolder(tmp_path / "attic", "attic")
        attic.create("ana", "operator")
        foreign = KeyFolder(attic.path, "labmesh")
        assert "those of network 'attic'" in refusal(ConfigError, foreign, inviting.code)
        assert inviting.admitted == []


def test_a_key_that_was_revoked_is_not_admitted_again(broker: KeyFolder, laptop: KeyFolder) -> None:
    (port,) = free_ports(1)
    with Inviting(broker, port) as inviting:
        join(laptop, inviting.code)
        inviting.over()
    broker.revoke("ana")
    with Inviting(broker, port) as again:
        assert "was revoked" in refusal(Conflict, laptop, again.code)
        assert again.admitted == []


def test_who_cannot_be_invited(broker: KeyFolder, laptop: KeyFolder) -> None:
    with pytest.raises(ConfigError, match=r"no broker's key in .*'labmesh keys init' makes it"):
        terms_for(laptop, "ana", "operator", broker_port=5750)
    with pytest.raises(ConfigError, match="names that begin with 'broker'"):
        terms_for(broker, "broker-2", "operator", broker_port=5750)


# ── who has the code and misuses it ─────────────────────────────────────────────────────────────


def test_garbage_of_who_has_the_code_is_refused_and_ends_nothing(
    broker: KeyFolder, laptop: KeyFolder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    (port,) = free_ports(1)
    with Inviting(broker, port) as inviting:
        with Joining(inviting.code) as joining:
            joining.ask()
            for frames in ([b""], [b"x" * 1000], [b"{}"], [b"\x80"], [b"x"] * 200):
                joining._socket.send_multipart(frames)
                assert joining._socket.poll(int(LIMIT_S * 1000))
                answer = joining._codec.decode(joining._socket.recv_multipart()).message
                assert type(answer).__name__ == "Failure"
        join(laptop, inviting.code)
        assert inviting.over() == "joined"
