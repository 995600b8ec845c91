"""A program loads the parts of labmesh that it uses, and no more: that is how soon it starts."""

from __future__ import annotations

import subprocess
import sys

import pytest

import labmesh

_NODES = "labmesh.broker", "labmesh.databank", "labmesh.relay", "labmesh.mesh", "labmesh.testing"


def printed(*words: str) -> str:
    started = [sys.executable, *words]
    return subprocess.run(started, capture_output=True, check=True, text=True).stdout


def loaded_after(program: str) -> set[str]:
    return set(printed("-c", f"{program}\nimport sys; print(*sys.modules)").split())


def test_each_public_name_is_there_when_it_is_asked_for() -> None:
    everything: dict[str, object] = {}
    exec("from labmesh import *", everything)
    assert set(labmesh.__all__) <= everything.keys()
    for name in labmesh.__all__:
        assert name in dir(labmesh)
        value = everything[name]
        assert getattr(labmesh, name) is value
        assert getattr(value, "__name__", name) == name


def test_modules_are_reached_by_the_package() -> None:
    loaded_after("import labmesh\nassert labmesh.errors.NotFound and labmesh.client.RelayClient")


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(AttributeError, match="'labmesh' has no attribute 'conect'"):
        _ = labmesh.conect


@pytest.mark.parametrize(
    ("program", "unused"),
    [
        ("import labmesh", (*_NODES, "labmesh.client", "zmq", "asyncio")),
        (
            "from labmesh.cli import main\nassert main(['ls', '--timeout', '0']) == 2",
            (*_NODES, "labmesh.cli.demo", "labmesh.cli.keys", "numpy"),
        ),
        (
            "from labmesh import RelayAgent",
            ("labmesh.broker", "labmesh.databank", "labmesh.mesh", "labmesh.cli", "numpy", "rich"),
        ),
    ],
)
def test_what_a_program_does_not_use_is_not_loaded(program: str, unused: tuple[str, ...]) -> None:
    assert not loaded_after(program).intersection(unused)


def test_the_help_tells_also_of_commands_that_are_not_loaded_yet() -> None:
    assert " ls     List who is on the mesh" in printed("-m", "labmesh", "--help")
    assert " put      Store a file" in printed("-m", "labmesh", "data")
