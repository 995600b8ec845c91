"""``labmesh keys`` and ``labmesh password``, and a mesh that runs with what they make."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.peers import until
from tests.support.promptness import SLACK_S

from labmesh import DirectorClientAgent, DirectoryBroker, RelayAgent
from labmesh.access.keyring import KeyFolder
from labmesh.cli import main
from labmesh.cli.password import words
from labmesh.errors import AuthenticationError, ConfigError, Forbidden
from labmesh.instruments.simulated import PowerSupply
from labmesh.transport.keys import MIN_PASSWORD, Security

Run = Callable[..., tuple[int, list[Any], str]]

#: A second is promised.
TAKES_EFFECT_S = 1.0 + SLACK_S


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KeyFolder:
    """The folder that the environment names; it is not there yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LMH_KEYS_DIR", str(tmp_path / "keys"))
    return KeyFolder(tmp_path / "keys")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command with ``--json``: exit code, objects on stdout, stderr."""

    def run(*command: str) -> tuple[int, list[Any], str]:
        exit_code = main([*command, "--json"])
        captured = capsys.readouterr()
        return exit_code, [json.loads(line) for line in captured.out.splitlines()], captured.err

    return run


def test_what_commands_change_is_in_the_journal_of_the_broker(
    keys: KeyFolder, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMH_AUDIT_DIR", str(tmp_path / "audit"))
    run("keys", "init", "--admin", "root")
    run("keys", "new", "viewer", "ana", "--relays", "psu-*")
    run("keys", "rotate", "ana")
    run("keys", "revoke", "ana")
    _, lines, _ = run("audit", "show", "--node", "broker")
    assert [(each["method"], each["object"]) for each in lines] == [
        ("init", "root"),
        ("new", "ana"),
        ("rotate", "ana"),
        ("revoke", "ana"),
    ]
    made, rotated = lines[1]["parameters"], lines[2]["parameters"]
    assert made["role"] == "viewer"
    assert rotated["former"] == made["fingerprint"]
    assert all(each["user"].startswith("local:") for each in lines)
    assert run("audit", "verify")[0] == 0
    (tmp_path / "audit" / "broker.jsonl").unlink()
    (tmp_path / "audit" / "broker.jsonl").mkdir()
    exit_code, _, errors = run("keys", "new", "viewer", "eve")
    assert exit_code == 0
    assert "not in the audit journal" in errors
    monkeypatch.setenv("LMH_AUDIT_DIR", "off")
    assert run("keys", "new", "viewer", "joe")[2] == ""


def test_a_network_is_made_and_changed_by_commands(keys: KeyFolder, run: Run) -> None:
    assert run("keys", "check")[0] == 1
    exit_code, (made,), _ = run("keys", "init", "--admin", "root")
    assert exit_code == 0
    assert made["broker"]["fingerprint"] == keys.secret_of("broker").fingerprint
    assert made["admin"] == {"name": "root", "fingerprint": keys.secret_of("root").fingerprint}
    assert run("keys", "check") == (0, [], "")
    assert run("keys", "init", "--admin", "root")[0] == 4

    limits = ("--relays", "psu-*,Inst-1", "--deny", "set_output", "--deny", "reset")
    more = ("--address", "10.0.0.0/8", "--until", "2027-01-31")
    _, (ana,), _ = run("keys", "new", "client", "ana", "--role", "operator", *limits, *more)
    assert (ana["role"], ana["relays"]) == ("operator", ["psu-*", "Inst-1"])
    granted = keys.grant_of("client", "ana")
    assert granted is not None
    assert granted.methods_deny == ("set_output", "reset")
    assert granted.addresses == ("10.0.0.0/8",)
    _, (psu,), _ = run("keys", "new", "relay", "psu-1")
    _, (vic,), _ = run("keys", "new", "client", "vic")
    assert vic["role"] == "viewer"

    _, listed, _ = run("keys", "list")
    assert {(each["name"], each["role"], each["state"]) for each in listed} == {
        ("root", "admin", "admitted"),
        ("broker", "broker", "trusted"),
        ("ana", "operator", "admitted"),
        ("vic", "viewer", "admitted"),
        ("psu-1", "relay", "admitted"),
    }
    secrets = [keys.secret_of(name).secret.decode() for name in keys.names()]
    assert not any(secret in json.dumps(listed) for secret in secrets)
    assert run("keys", "show", psu["fingerprint"][:6])[1] == run("keys", "show", "psu-1")[1]
    assert run("keys", "show", "nobody")[0] == 3

    _, (done,), _ = run("keys", "rotate", "psu-1")
    assert (done["before"], done["authorized"]) == (psu["fingerprint"], True)
    _, (gone,), _ = run("keys", "revoke", "vic")
    assert (gone["fingerprint"], gone["state"]) == (vic["fingerprint"], "revoked")
    assert run("keys", "revoke", "vic")[0] == 3
    states = {each["fingerprint"]: each["state"] for each in run("keys", "list")[1]}
    assert states[vic["fingerprint"]] == states[psu["fingerprint"]] == "revoked"
    assert states[done["fingerprint"]] == "admitted"
    _, (coming,), _ = run("keys", "rotate", "broker")
    _, (current,), _ = run("keys", "rotate", "broker", "--finish")
    assert coming["fingerprint"] == current["fingerprint"] != made["broker"]["fingerprint"]


def test_on_another_machine_a_key_is_made_and_admitted_by_its_file(
    keys: KeyFolder, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exit_code, (made,), _ = run("keys", "new", "operator", "ana")
    assert (exit_code, made["authorized"]) == (0, None)
    assert not keys.keeps_list
    public = Path(made["public"])
    assert made["key"] in public.read_text()
    assert keys.secret_of("ana").secret.decode() not in public.read_text()
    exit_code, _, errors = run("keys", "new", "viewer", "vic", "--relays", "psu-*")
    assert exit_code == 2
    assert "on the broker's machine" in errors

    monkeypatch.setenv("LMH_KEYS_DIR", str(tmp_path / "broker"))
    run("keys", "init", "--admin", "root")
    options = ("--key", str(public), "--relays", "psu-*")
    _, (admitted,), _ = run("keys", "new", "operator", "ana", *options)
    assert (admitted["key"], admitted["relays"]) == (made["key"], ["psu-*"])
    assert KeyFolder(tmp_path / "broker").names() == ["broker", "root"]
    assert run("keys", "check")[0] == 0


@pytest.mark.parametrize(
    ("command", "exit_code", "says"),
    [
        (("new", "relay", "../x"), 2, "has a character that is not allowed"),
        (("new", "relay", "broker"), 2, "names that begin with 'broker' are"),
        (("new", "relay", "root", "--role", "viewer"), 2, "--role is for a client"),
        (("new", "viewer", "root"), 4, "client root is admitted already"),
        (("new", "viewer", "vic", "--until", "soon"), 2, "'soon' is no date"),
        (("new", "viewer", "vic", "--address", "10.0.0.0/99"), 2, "is no network"),
        (("new", "viewer", "vic", "--key", "nothing.pub"), 2, "cannot read nothing.pub"),
        (("new", "viewer", "vic", "--key", "keys/self/root.secret"), 2, "has a secret key in it"),
        (("new", "viewer", "vic", "--key", "keys/self/root.pub"), 4, "stands for admin root"),
        (("new", "king", "vic"), 2, "king"),
        (("rotate", "nobody"), 3, "there is no key 'nobody'"),
        (("rotate", "root", "--finish"), 2, "--finish is for the broker's key"),
        (("rotate", "broker", "--finish"), 3, "no new key of the broker"),
        (("revoke", "nobody"), 3, "nobody called 'nobody' is authorized"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_cannot_be_done_changes_nothing(
    keys: KeyFolder, run: Run, command: tuple[str, ...], exit_code: int, says: str
) -> None:
    run("keys", "init", "--admin", "root")
    before = {path: path.read_bytes() for path in keys.path.rglob("*") if path.is_file()}
    ended, printed, errors = run("keys", *command)
    assert (ended, printed) == (exit_code, [])
    assert says in json.loads(errors)["error"]["text"]
    after = {path: path.read_bytes() for path in keys.path.rglob("*") if path.is_file()}
    assert after == before


def test_a_new_password_is_six_words(run: Run) -> None:
    (exit_code, (made,), _), (_, (other,), _) = run("password", "new"), run("password", "new")
    assert exit_code == 0
    assert len(set(words())) == len(words()) >= 1296
    assert len({word[:4] for word in words()}) == len(words())
    assert all(word.isascii() and word.isalpha() and word.islower() for word in words())
    parts = made["password"].split("-")
    assert len(parts) == 6
    assert set(parts) <= set(words())
    assert len(made["password"]) >= MIN_PASSWORD
    assert made["entropy_bits"] == pytest.approx(6 * math.log2(len(words())))
    assert made["entropy_bits"] > 60
    assert other["password"] != made["password"]


# ── a mesh with those keys ──────────────────────────────────────────────────────────────────────


def binds() -> dict[str, str]:
    return {f"{name}_bind": "tcp://127.0.0.1:0" for name in ("rpc", "xsub", "xpub")}


async def test_a_mesh_runs_with_the_keys_and_files_copied_by_hand_count_at_once(
    keys: KeyFolder, run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run("keys", "init", "--admin", "root")
    run("keys", "new", "relay", "psu-1")
    caplog.set_level("INFO")
    async with DirectoryBroker(**binds()) as broker:
        facts: dict[str, Any] = {
            "broker_rpc": str(broker.rpc),
            "state_pub": str(broker.xsub),
            "rpc_bind": "tcp://127.0.0.1:0",
        }
        connect = {"broker_rpc": str(broker.rpc), "broker_xpub": str(broker.xpub)}
        async with RelayAgent("psu-1", PowerSupply(), **facts) as relay:
            await relay.ready
            assert broker.fingerprint == keys.secret_of("broker").fingerprint
            for node in (broker, relay):
                assert f"(keys, fingerprint {node.fingerprint})" in caplog.text
            async with DirectorClientAgent(**connect) as root:
                psu = await root.get_relay_agent("psu-1")
                assert await psu.call("set_voltage", [2.5]) is not None
            # A stranger makes a key and trusts the broker: that alone is not enough.
            elsewhere = KeyFolder(keys.path.parent / "elsewhere")
            elsewhere.pin_broker(keys.secret_of("broker").public)
            elsewhere.create("vic", "viewer")
            vic = Security.resolve(mode="keys", environ={"LMH_KEYS_DIR": str(elsewhere.path)})
            with pytest.raises(AuthenticationError):
                await look(connect, vic)
            public = elsewhere.public_path("vic").read_text()
            path = keys.authorized / "client" / "vic.pub"
            path.write_text(public)
            user = elsewhere.identity("vic").grant.user
            guard = broker._sockets.security.guard
            assert guard is not None
            await until(lambda: guard.grant_of(user) is not None, TAKES_EFFECT_S)
            async with DirectorClientAgent(**connect, security=vic) as client:
                psu = await client.get_relay_agent("psu-1")
                with pytest.raises(Forbidden, match="viewer vic may not call methods that change"):
                    await psu.call("set_voltage", [3.5])
            keys.revoked.mkdir()
            path.rename(keys.revoked / "vic.pub")
            await until(lambda: guard.grant_of(user) is None, TAKES_EFFECT_S)
            with pytest.raises(AuthenticationError):
                await look(connect, vic)


async def look(connect: dict[str, str], security: Security) -> None:
    async with DirectorClientAgent(**connect, security=security) as client:
        await client.list_relay_ids()


async def test_a_node_without_a_key_does_not_start_in_mode_keys(
    keys: KeyFolder, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("keys", "init", "--admin", "root")
    monkeypatch.setenv("LMH_SECURITY", "keys")
    relay = RelayAgent("psu-1", PowerSupply(), rpc_bind="tcp://127.0.0.1:0")
    with pytest.raises(ConfigError, match="relay psu-1 has no key"):
        await relay.start()


async def test_a_short_password_is_refused_where_others_reach_the_node(
    caplog: pytest.LogCaptureFixture,
) -> None:
    short = Security.resolve(environ={"LMH_NETWORK_PASSWORD": "x" * (MIN_PASSWORD - 1)})
    long = Security.resolve(environ={"LMH_NETWORK_PASSWORD": "x" * MIN_PASSWORD})
    assert (short.short_password, long.short_password) == (True, False)
    elsewhere = dict.fromkeys(binds(), "tcp://192.0.2.1:0")
    with pytest.raises(ConfigError, match=r"fewer than 12 characters.*'labmesh password new'"):
        await DirectoryBroker(**elsewhere, security=short).start()
    with pytest.raises(
        ConfigError, match=r"cannot bind"
    ):  # no such address, which is another fault
        await DirectoryBroker(**elsewhere, security=long).start()
    # Every interface is what most files say: it goes on, and says so once.
    everywhere = dict.fromkeys(binds(), "tcp://*:0")
    for security, times in ((short, 1), (long, 0)):
        caplog.clear()
        async with DirectoryBroker(**everywhere, security=security):
            assert caplog.text.count("fewer than 12 characters") == times
    caplog.clear()
    async with DirectoryBroker(**binds(), security=short):
        assert "characters" not in caplog.text


def test_who_revokes_is_told_that_a_spare_broker_has_a_list_of_its_own(
    keys: KeyFolder, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("keys", "init", "--admin", "root")
    for name, config in (("ana", ""), ("bob", '[broker]\nspare = "lab-pc2"\n')):
        (tmp_path / "labmesh.toml").write_text(config)
        run("keys", "new", "viewer", name)
        assert main(["keys", "revoke", name]) == 0
        captured = capsys.readouterr()
        told = "the spare broker (lab-pc2) still admits it" in captured.out + captured.err
        assert told == bool(config)
