"""Which event loop is made where."""

from __future__ import annotations

import asyncio
import sys

import pytest

from labmesh.loops import VARIABLE, new_loop


def kind_of_loop() -> str:
    loop = new_loop()
    try:
        return type(loop).__module__.partition(".")[0]
    finally:
        loop.close()


def test_the_fast_loop_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("uvloop")
    monkeypatch.delenv(VARIABLE, raising=False)
    assert kind_of_loop() == "uvloop"


def test_it_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "0")
    assert kind_of_loop() == "asyncio"


def test_it_is_never_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert kind_of_loop() == "asyncio"


def test_on_windows_it_is_the_loop_that_watches_descriptors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    loop = new_loop()
    try:
        assert isinstance(loop, asyncio.SelectorEventLoop)
    finally:
        loop.close()
