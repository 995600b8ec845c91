"""``labmesh keys invite`` and ``keys join``, as two people at two machines type them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.processes import Process, Start, free_ports

from labmesh.cli import main
from labmesh.protocol.pairing import SECRET_BYTES, PairingCode

LIMIT_S = 20.0
CODE = r"^([0-9A-Z]{4}-){6}[0-9A-Z]{4}$"

Command = Callable[..., Process]


@pytest.fixture
def command(start: Start, tmp_path: Path) -> Command:
    """Run ``labmesh`` on one of two machines, each with a folder and keys of its own."""

    def start_one(machine: str, *words: str, **environ: str) -> Process:
        folder = tmp_path / machine
        folder.mkdir(exist_ok=True)
        keys = {"LMH_KEYS_DIR": str(folder / "keys")}
        return start(["-m", "labmesh", *words], cwd=folder, environ={**keys, **environ})

    return start_one


def done(process: Process, code: int = 0) -> Process:
    assert process.wait_end(LIMIT_S) == code, process.tail()
    return process


def test_two_commands_bring_a_machine_into_a_network(command: Command, tmp_path: Path) -> None:
    rpc, xsub, xpub, pairing = free_ports(4)
    done(command("lab-pc", "keys", "init"))
    (tmp_path / "lab-pc" / "labmesh.toml").write_text(
        f'[broker]\nrpc_bind = "tcp://127.0.0.1:{rpc}"\nxsub_bind = "tcp://127.0.0.1:{xsub}"\n'
        f'xpub_bind = "tcp://127.0.0.1:{xpub}"\n'
    )
    broker = command("lab-pc", "broker", "--json")
    broker.wait_for('"event":"ready"', LIMIT_S)
    inviting = command(
        *("lab-pc", "keys", "invite", "ana", "--role", "viewer", "--relays", "psu-*"),
        *("--host", "127.0.0.1", "--port", str(pairing)),
    )
    code = inviting.wait_for(CODE, LIMIT_S)[0]
    inviting.wait_for("127.0.0.1 is this machine alone", LIMIT_S)
    mistyped = done(command("laptop", "keys", "join", code[:-1]), 2)
    assert "27 characters, 1 missing" in mistyped.errors
    joined = done(command("laptop", "keys", "join", code.lower().replace("-", " ")))
    done(inviting)
    assert "viewer ana has joined from 127.0.0.1" in inviting.errors
    assert inviting.output == code
    assert "You are viewer ana of network labmesh now" in joined.output
    assert "The broker has let this key in." in joined.errors
    assert "Next: labmesh ls" in joined.errors
    # Neither an address nor a variable: where the broker is was told when it joined.
    listed = json.loads(done(command("laptop", "ls", "--json")).output)
    assert listed["broker"] == f"tcp://127.0.0.1:{rpc}"
    assert "no invitation is open" in done(command("laptop", "keys", "join", code), 5).errors
    done(command("lab-pc", "keys", "revoke", "ana"))
    assert done(command("laptop", "ls"), 4).errors
    broker.interrupt()
    done(broker)


def test_an_invitation_that_nobody_takes(command: Command) -> None:
    (port,) = free_ports(1)
    words = ["keys", "invite", "psu-1", "--role", "relay", "--host", "lab-pc", "--port", str(port)]
    assert "'labmesh keys init'" in done(command("lab-pc", *words), 2).errors
    done(command("lab-pc", "keys", "init"))
    expired = done(command("lab-pc", *words, "--minutes", "0.01", "--json"), 5)
    assert json.loads(expired.output)["host"] == "lab-pc"
    assert "psu-1 did not join within 0.01 min" in expired.errors
    given_up = command("lab-pc", *words)
    code = given_up.wait_for(CODE, LIMIT_S)[0]
    given_up.wait_for(f"labmesh keys join {code} --broker lab-pc", LIMIT_S)
    given_up.interrupt()
    done(given_up, 130)
    assert "--broker HOST" in done(command("laptop", "keys", "join", code), 2).errors


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["invite", "ana", "--role", "broker"], 2, "broker"),
        (["invite", "../ana", "--role", "viewer"], 2, "the name"),
        (["invite", "ana", "--role", "viewer", "--minutes", "61"], 2, "at most 60"),
        (["invite", "ana", "--role", "viewer", "--port", "0"], 2, "from 1 to 65535"),
        (["join", "nonsense"], 2, "8 characters, 20 missing"),
        (["join"], 2, "the code is empty"),
        (["join", PairingCode("127.0.0.1", 1, bytes(SECRET_BYTES)).text], 5, "no invitation"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage(
    words: list[str],
    code: int,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LMH_KEYS_DIR", str(tmp_path / "keys"))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert main(["keys", *words]) == code
    captured = capsys.readouterr()
    assert told in captured.err
    assert captured.out == ""
    assert not (tmp_path / "keys").exists()
