"""The laboratory of docs/howto-laboratory.md, set up by its commands on computers of its own.

    pytest tests/acceptance/test_laboratory.py -s               one computer, and those it refuses
    pytest tests/acceptance/test_laboratory.py -s -m soak       with keys, with a password, open

prints what each door told somebody who was not invited, and how quickly. Needs root; without it
these tests are skipped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.processes import Process, program
from tests.support.promptness import SLACK_S
from tests.support.transcript import HOSTS, Laboratory, blocks_of, comparable

from labmesh.access.keyring import KeyFolder
from labmesh.transport.key_pairs import KeyPair, new_key_pair

LIMIT_S = 20.0
#: A refusal is told within this time; so long an intruder listens.
TOLD_S = 2.0
#: What was revoked is dead within a second.
DEAD_S = 1.0 + SLACK_S
PARTS = ("keys", "password", "insecure", "protected")
DOORS = {
    "directory": ("lab-pc", 5750),
    "xsub": ("lab-pc", 5751),
    "xpub": ("lab-pc", 5752),
    "relay": ("bench-1", 5850),
    "ingest": ("store", 5761),
    "retrieve": ("store", 5762),
}
NOTHING: dict[str, list[str]] = {door: [] for door in DOORS}


@contextmanager
def as_documented(part: str, folder: Path) -> Iterator[Laboratory]:
    """The laboratory at the end of a part of the document; what was printed is in the document."""
    with Laboratory(folder) as laboratory:
        for block in blocks_of(part):
            printed = laboratory.run(block)
            assert comparable(printed.text) == comparable(block.text), (
                "docs/howto-laboratory.md shows something else: python -m tests.support.transcript "
                f"{part} writes what is printed now"
            )
        yield laboratory


def knock(laboratory: Laboratory, user: str, host: str, **options: Any) -> Process:
    """Somebody at every door, who listens for a while."""
    doors = {
        door: f"tcp://{laboratory.hosts[at].address}:{port}" for door, (at, port) in DOORS.items()
    }
    given = json.dumps({"doors": doors, "seconds": TOLD_S, **options})
    person = laboratory.person(user, host)
    return person.host.start([program("intruder.py"), given], cwd=person.home)


def heard(knocking: Process) -> dict[str, list[str]]:
    """What came back to them at each door: replies by type, events by topic, each once."""
    assert knocking.wait_end(LIMIT_S) == 0, knocking.tail()
    found = {door: list(dict.fromkeys(each)) for door, each in json.loads(knocking.output).items()}
    print(found)
    return found


def told_why(laboratory: Laboratory, host: str, **environ: str) -> str:
    """The text of the refusal that a client on this host gets, in time."""
    person = laboratory.person("eve", host)
    where = [laboratory.hosts["lab-pc"].address, "psu-1", "bank-0"]
    own = {**person.environ, "LMH_NETWORK_PASSWORD": "", **environ}
    visitor = person.host.start([program("visitor.py"), *where], cwd=person.home, environ=own)
    found = json.loads(visitor.wait_for(r"^\{.*\}$", LIMIT_S)[0])
    print(f"told after {found['took_s']:.2f} s: {found.get('text')}")
    assert found["error"] == "AuthenticationError"
    assert found["took_s"] < TOLD_S + SLACK_S
    text: str = found["text"]
    return text


def keys_of_doors(laboratory: Laboratory) -> dict[str, str]:
    """The public key of each door, which anybody may know."""
    folder = key_folder(laboratory, "kim", "lab-pc")
    keys = {each.name: each.key for each in folder.allow_list().grants}
    broker = folder.broker_keys()[0].decode()
    owners = {"relay": keys["psu-1"], "ingest": keys["bank-0"], "retrieve": keys["bank-0"]}
    return {door: owners.get(door, broker) for door in DOORS}


def key_folder(laboratory: Laboratory, user: str, host: str) -> KeyFolder:
    return KeyFolder(laboratory.person(user, host).home / ".config/labmesh/keys/labmesh")


def test_every_part_of_the_document_is_typed_somewhere() -> None:
    for part in PARTS:
        typed = [line for block in blocks_of(part) for line in block.commands]
        assert len(typed) > 3, part
        assert {block.host for block in blocks_of(part)} <= set(HOSTS)


@pytest.mark.soak
@pytest.mark.timeout(180)
def test_a_laboratory_with_keys(tmp_path: Path) -> None:
    with as_documented("keys", tmp_path) as laboratory:
        keys = keys_of_doors(laboratory)
        member = key_folder(laboratory, "omar", "office").identity("omar").pair
        # All at once, for none of them minds the others. The member is the control.
        steady = work_on(laboratory)
        plain = knock(laboratory, "eve", "outsider")
        stranger = knock(laboratory, "eve", "outsider", keys=keys, **halves(new_key_pair()))
        omar = knock(laboratory, "omar", "office", keys=keys, **halves(member))
        assert "labmesh keys join CODE" in told_why(laboratory, "outsider")
        assert heard(plain) == NOTHING
        assert heard(stranger) == NOTHING
        assert_gets_everywhere(heard(omar))
        assert_revoked_at_once(laboratory, steady)


def halves(pair: KeyPair) -> dict[str, str]:
    return {"public": pair.public.decode(), "secret": pair.secret.decode()}


def assert_gets_everywhere(found: dict[str, list[str]]) -> None:
    """An operator is answered everywhere; only publishing is not for people."""
    assert found["directory"] == ["node_list"]
    assert found["relay"][-1] == "result"
    assert found["ingest"] == ["committed"]
    assert found["retrieve"] != []
    assert "state.thermo-1" in found["xpub"]
    assert found["xsub"] == []


def work_on(laboratory: Laboratory) -> Process:
    """Omar calls and listens, all the time."""
    omar = laboratory.person("omar", "office")
    return omar.host.start([program("steady.py"), "psu-1"], cwd=omar.home, environ=omar.environ)


def assert_revoked_at_once(laboratory: Laboratory, steady: Process) -> None:
    """Who works on is out within the second; the instrument stays."""
    for line in ("^state", "^call"):
        steady.wait_for(line, LIMIT_S)
    kim = laboratory.person("kim", "lab-pc")
    revoking = laboratory.type(kim, "labmesh keys revoke omar")
    revoking.wait_for("operator omar .* revoked", LIMIT_S)
    revoked_at = revoking.lines[0].time
    answer = laboratory.type(kim, "labmesh call psu-1 measure --json")
    assert steady.wait_end(LIMIT_S) == 0, steady.tail()
    last = {
        kind: max(line.time for line in steady.lines if line.text.startswith(kind)) - revoked_at
        for kind in ("call", "state")
    }
    refused = steady.wait_for("^refused (AuthenticationError|Forbidden): .*", LIMIT_S)[0]
    print(f"last answer {last['call']:.2f} s, last state {last['state']:.2f} s after; {refused}")
    assert max(last.values()) < DEAD_S, steady.tail()
    assert answer.wait_end(LIMIT_S) == 0, answer.tail()


@pytest.mark.soak
@pytest.mark.timeout(120)
def test_a_laboratory_with_a_password(tmp_path: Path) -> None:
    with as_documented("password", tmp_path) as laboratory:
        assert "LMH_NETWORK_PASSWORD" in told_why(laboratory, "outsider")
        wrong = told_why(laboratory, "outsider", LMH_NETWORK_PASSWORD="another word altogether")
        assert "another network password" in wrong
        assert heard(knock(laboratory, "eve", "outsider")) == NOTHING


@pytest.mark.soak
@pytest.mark.timeout(120)
def test_an_open_laboratory(tmp_path: Path) -> None:
    with as_documented("insecure", tmp_path) as laboratory:
        found = heard(knock(laboratory, "eve", "outsider"))
        assert found["directory"] == ["node_list"]
        assert found["relay"][-1] == "result"
        assert found["ingest"] == ["committed"]
        assert "state.psu-1" in found["xpub"]


def test_a_computer_in_protected_mode(tmp_path: Path) -> None:
    with as_documented("protected", tmp_path) as laboratory:
        assert "protected mode" in told_why(laboratory, "outsider")
        found = heard(knock(laboratory, "eve", "outsider"))
        assert {door: found[door] for door in ("directory", "xsub", "xpub")} == {
            "directory": [],
            "xsub": [],
            "xpub": [],
        }
