"""Values, streams, batches, leases and settled calls of an instrument, as a script sees them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from tests.support.promptness import BEGUN_S
from tests.support.served import ServedMesh, eventually

from labmesh import expose
from labmesh.errors import BadArguments, DriverError, Locked, NotFound, OutcomeUnknown
from labmesh.mesh import Instrument, Mesh


class Supply:
    """A supply with a value, a scan, and a lock on its door."""

    def __init__(self) -> None:
        self._voltage = 0.0
        self.reads = 0
        self.scans: list[str] = []
        self.is_safe = False

    @property
    def voltage(self) -> Annotated[float, "V"]:
        """At the output."""
        self.reads += 1
        return self._voltage

    @voltage.setter
    def voltage(self, value: float) -> None:
        if value > 30:
            raise ValueError(f"{value} V is too high")
        self._voltage = float(value)

    @property
    def serial(self) -> str:
        """On its back."""
        return "A-17"

    @expose(read_only=True)
    def measure(self) -> dict[str, float]:
        """What is there now."""
        return {"voltage": self._voltage}

    def scan(self, start: int, stop: int) -> Iterator[int]:
        """Points, and at the end how many."""
        self.scans.append("begun")
        try:
            for point in range(start, stop):
                if point == 1000:
                    raise ValueError("out of paper")
                yield point
        finally:
            self.scans.append("ended")
        return stop - start

    def safe_state(self) -> None:
        self.is_safe = True


@pytest.fixture
def supply() -> Supply:
    return Supply()


@pytest.fixture
def served(supply: Supply) -> Iterator[ServedMesh]:
    with ServedMesh({"Inst-0": supply}) as mesh:
        yield mesh


@pytest.fixture
def mesh(served: ServedMesh) -> Mesh:
    return served.connect()


@pytest.fixture
def psu(mesh: Mesh) -> Any:
    return mesh["Inst-0"]


# ── values ──────────────────────────────────────────────────────────────────────────────────────


def test_values_are_read_and_written_at_the_instrument(psu: Any, supply: Supply) -> None:
    psu.voltage = 2.5
    assert psu.voltage == psu.get("voltage") == supply._voltage == 2.5
    psu.set("voltage", 3)
    assert psu.voltage == 3.0
    assert psu.serial == "A-17"
    with pytest.raises(ValueError, match="99 V is too high"):
        psu.voltage = 99
    with pytest.raises(AttributeError, match="read-only"):
        psu.serial = "B"
    with pytest.raises(AttributeError):
        psu.set("serial", "B")
    with pytest.raises(AttributeError):
        psu.get("curent")


def test_looking_at_it_reads_nothing_at_the_instrument(psu: Any, supply: Supply) -> None:
    assert "voltage" in dir(psu)
    assert ".voltage: float" in repr(psu)
    assert "settable" in psu._repr_html_()
    assert supply.reads == 0


# ── streams ─────────────────────────────────────────────────────────────────────────────────────


def test_a_method_that_yields_is_iterated(psu: Any, supply: Supply) -> None:
    points = psu.scan(0, 100)
    assert supply.scans == []
    assert list(points) == list(range(100))
    assert points.result == 100
    assert list(psu.call("scan", {"start": 1, "stop": 3})) == [1, 2]


def test_an_error_of_the_driver_comes_behind_its_items(psu: Any) -> None:
    points = psu.scan(990, 2000)
    assert [next(points) for _ in range(10)] == list(range(990, 1000))
    with pytest.raises(ValueError, match="out of paper") as caught:
        next(points)
    assert isinstance(caught.value, DriverError)
    with pytest.raises(BadArguments, match="stop"):
        next(psu.scan(0))


def test_leaving_early_ends_the_method_and_the_next_call_runs(psu: Any, supply: Supply) -> None:
    with psu.scan(0, 1000) as points:
        assert next(points) == 0
    eventually(lambda: supply.scans == ["begun", "ended"], "the scan has ended")
    for point in psu.scan(0, 1000):
        if point == 5:
            break
    assert psu.measure() == {"voltage": 0.0}
    eventually(lambda: supply.scans == ["begun", "ended"] * 2, "the second one as well")


def test_a_slow_reader_is_waited_for(psu: Any, supply: Supply) -> None:
    points = psu.scan(0, 900)
    assert next(points) == 0
    assert supply.scans == ["begun"]  # it would have ended by now, had nothing held it back
    assert sum(1 for _ in points) == 899


# ── batches ─────────────────────────────────────────────────────────────────────────────────────


def test_a_batch_runs_back_to_back(psu: Any) -> None:
    with psu.batch() as b:
        b.voltage = 7
        measured, voltage = b.measure(), b.voltage
    assert (measured.value, voltage.value) == ({"voltage": 7.0}, 7.0)


def test_a_batch_stops_at_the_first_error_unless_told_otherwise(psu: Any) -> None:
    with pytest.raises(ValueError, match="too high"), psu.batch() as b:  # noqa: PT012
        b.voltage = 99
        b.voltage = 5
    assert psu.voltage == 0.0
    with psu.batch(keep_going=True) as b:
        wrong = b.set("voltage", 99)
        b.voltage = 5
    assert isinstance(wrong.error, ValueError)
    assert psu.voltage == 5.0


# ── leases ──────────────────────────────────────────────────────────────────────────────────────


def test_with_a_lease_others_read_and_do_not_write(
    served: ServedMesh, psu: Any, supply: Supply
) -> None:
    other: Any = served.connect()["Inst-0"]
    with psu.lease(note="T sweep") as lease:
        psu.voltage = 2
        assert other.voltage == 2.0
        assert other.measure() == {"voltage": 2.0}
        with pytest.raises(Locked, match="T sweep"):
            other.voltage = 3
        held = other.status().lease
        assert held is not None
        assert (held.note, held.fence) == ("T sweep", lease.fence)
        assert "alone may write" in repr(other.status())
    other.voltage = 3
    assert other.status().lease is None
    assert not supply.is_safe


def test_a_lease_can_be_broken(served: ServedMesh, psu: Any) -> None:
    other: Any = served.connect()["Inst-0"]
    lease = psu.lease(note="away for lunch")
    other.break_lease("it is my turn")
    other.voltage = 3
    with pytest.raises(Locked, match=r"it is my turn.*acquire it again"):
        psu.voltage = 4
    with psu.lease(note="back again") as again:  # as that said, without waiting for anything
        assert again.fence > lease.fence
        psu.voltage = 4
    assert "it is my turn" in lease.lost
    lease.release()
    with pytest.raises(NotFound):
        other.break_lease()


def test_a_program_that_ends_in_the_middle_leaves_a_safe_instrument(
    served: ServedMesh, supply: Supply
) -> None:
    mesh = served.connect()
    psu = mesh["Inst-0"]
    _lease = psu.lease(note="T sweep")
    mesh.close()
    eventually(lambda: supply.is_safe, "safe_state() was called")


# ── what is unknown ─────────────────────────────────────────────────────────────────────────────


class Slow:
    """Holds on to a call until it is let go."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()

    def ramp(self) -> str:
        """Take long."""
        self.begun.set()
        assert self.go_on.wait(30)
        return "done"


def test_a_call_of_unknown_outcome_can_be_settled(served: ServedMesh, mesh: Mesh) -> None:
    slow = Slow()
    served.do(served.local.start_relay("slow", slow))
    instrument: Instrument = mesh["slow"]
    with pytest.raises(OutcomeUnknown, match="call_status") as caught:
        instrument.call("ramp", timeout=BEGUN_S)
    status = instrument.status()
    assert status.busy_with == "ramp"
    running = instrument.call_status(caught.value)
    assert (running.state, running.executed) == ("running", True)
    slow.go_on.set()
    eventually(lambda: instrument.call_status(caught.value).state == "returned", "it has returned")
    settled = instrument.call_status(caught.value.detail["call"])
    assert (settled.value, settled.kept) == ("done", True)
    assert "returned 'done'" in repr(settled)
