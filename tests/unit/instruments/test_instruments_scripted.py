"""The driver double: it answers by its script, and tells how it was called."""

from __future__ import annotations

import threading

import pytest

from labmesh.instruments.exposure import MethodTable
from labmesh.instruments.scripted import After, Held, RecordedCall, ScriptedInstrument
from labmesh.testing import ManualClock


def test_a_list_is_answered_in_order_and_ends_with_an_error() -> None:
    psu = ScriptedInstrument(read=[1.5, None, OSError("no answer"), ArithmeticError])
    assert psu.read() == 1.5
    assert psu.read() is None
    with pytest.raises(OSError, match="no answer"):
        psu.read()
    with pytest.raises(ArithmeticError):
        psu.read()
    for _ in range(2):
        with pytest.raises(LookupError, match=r"read\(\) has 4 answers; this was one more call"):
            psu.read()


def test_anything_else_is_the_answer_each_time_and_a_function_makes_one() -> None:
    psu = ScriptedInstrument(
        poll={"voltage": 2.5},
        identify="ACME",
        double=lambda value, *, offset=0: 2 * value + offset,
        fail=TimeoutError,
        broken=lambda: OSError("made by the function"),
    )
    assert [psu.poll(), psu.poll(), psu.identify()] == [{"voltage": 2.5}] * 2 + ["ACME"]
    assert psu.double(4, offset=1) == 9
    for _ in range(2):
        with pytest.raises(TimeoutError):
            psu.fail()
    with pytest.raises(OSError, match="made by the function"):
        psu.broken()


def test_each_instrument_has_its_own_methods_and_nothing_else_is_exposed() -> None:
    psu, scope = ScriptedInstrument(set_voltage=1), ScriptedInstrument(acquire=[1], poll={})
    assert [each.name for each in MethodTable.of(psu).describe()] == ["set_voltage"]
    assert [each.name for each in MethodTable.of(scope).describe()] == ["acquire", "poll"]
    assert MethodTable.of(scope).has_poll
    assert MethodTable.of(psu).driver_name == "ScriptedInstrument"
    assert isinstance(psu, ScriptedInstrument)
    with pytest.raises(AttributeError, match="no method 'acquire'; it has set_voltage"):
        psu.acquire()
    assert not hasattr(psu, "_private")


def test_calls_are_recorded_with_their_times() -> None:
    clock = ManualClock(10.0)
    psu = ScriptedInstrument(clock=clock, sleep=clock.sleep, ramp=After(3.0, "done"), stop=None)
    assert psu.ramp(5, step=0.1) == "done"
    psu.stop()
    assert list(psu.calls) == [
        RecordedCall("ramp", (5,), {"step": 0.1}, 10.0),
        RecordedCall("stop", (), {}, 13.0),
    ]
    assert psu.calls[:1] == psu.calls.of("ramp") == [psu.calls[0]]
    assert len(psu.calls) == 2
    assert "ramp" in repr(psu.calls)


def test_a_held_answer_comes_when_it_is_released() -> None:
    released = threading.Event()
    psu = ScriptedInstrument(block=[Held(released, After(0, "free"))])
    got: list[str] = []
    thread = threading.Thread(target=lambda: got.append(psu.block()))
    thread.start()
    psu.calls.wait_for(1, "block")
    assert got == []
    released.set()
    thread.join()
    assert got == ["free"]


def test_a_driver_that_nobody_releases_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labmesh.instruments.scripted._HELD_S", 0.01)
    psu = ScriptedInstrument(block=Held(threading.Event()))
    with pytest.raises(TimeoutError, match=r"block\(\) was not released"):
        psu.block()


def test_waiting_for_calls_that_do_not_come_tells_which_came() -> None:
    psu = ScriptedInstrument(on=1, off=0)
    psu.on()
    psu.calls.wait_for(1)
    with pytest.raises(TimeoutError, match=r"2 calls of off .* these came: \['on'\]"):
        psu.calls.wait_for(2, "off", timeout=0.01)
