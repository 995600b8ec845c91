"""A driver's names as attributes: what they do, and what asks nobody."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from labmesh.blocking.instrument import Instrument
from labmesh.blocking.methods import Driver
from labmesh.blocking.streams import Stream
from labmesh.errors import Cancelled
from labmesh.events.reading import Reading
from labmesh.protocol.messages import (
    BatchResult,
    Description,
    MethodInfo,
    ValueInfo,
    ValueLimits,
)

VOLTS = ValueLimits(unit="V", lowest=0, highest=30)
DESCRIPTION = Description(
    id="1",
    node_id="Inst-0",
    epoch="e1",
    driver="PowerSupply",
    methods=[
        MethodInfo(name="set_voltage", signature="(value: float)", limits={"value": VOLTS}),
        MethodInfo(name="scan", signature="(start, stop)", yields=True),
        MethodInfo(name="watch", yields=True),
        MethodInfo(name="status"),
    ],
    values=[
        ValueInfo(name="voltage", type="float", settable=True, limits=VOLTS),
        ValueInfo(name="serial", type="str"),
        ValueInfo(name="pin", gettable=False, settable=True),
        ValueInfo(name="state", settable=True),
    ],
)


class Client:
    """A client that has heard one state, and knows no relay."""

    call_limit = 600.0

    def known(self, _relay_id: str) -> None:
        return None

    def last_reading(self, relay_id: str) -> Reading:
        return Reading(relay_id, {"voltage": 2.4}, time.time(), "e1", 1)


class Recorded:
    """A session that remembers what the instrument was asked."""

    closed = False

    def __init__(self) -> None:
        self.client = Client()
        self.asked: list[tuple[Any, ...]] = []
        #: of the batch that is sent
        self.outcomes: list[Any] = []

    def learn(self, _relay_id: str) -> None:
        """It is known already."""

    def driver(self, _relay_id: str) -> Driver:
        return Driver.of(DESCRIPTION)

    held_driver = driver

    def call(
        self,
        relay_id: str,
        name: str,
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        access: str,
        timeout: float | None,
    ) -> Any:
        self.asked.append((access, relay_id, name, args, kwargs, timeout))
        return 2.5

    def batch(
        self, relay_id: str, calls: list[Any], *, keep_going: bool, timeout: float | None
    ) -> BatchResult:
        self.asked.append(("batch", relay_id, calls, keep_going, timeout))
        return BatchResult(id="1", outcomes=self.outcomes)

    def run(self, work: Any) -> Any:
        work.close()
        raise AssertionError("nothing is to be run on the loop")


@pytest.fixture
def session() -> Recorded:
    return Recorded()


@pytest.fixture
def psu(session: Recorded) -> Any:
    return Instrument(session, "Inst-0")  # type: ignore[arg-type]


def test_a_value_is_read_and_written_as_an_attribute(psu: Any, session: Recorded) -> None:
    assert psu.voltage == 2.5
    psu.voltage = 3
    assert psu.get("voltage", timeout=1) == 2.5
    psu.set("voltage", 4, timeout=2)
    assert session.asked == [
        ("get", "Inst-0", "voltage", [], {}, None),
        ("set", "Inst-0", "voltage", [3], {}, None),
        ("get", "Inst-0", "voltage", [], {}, 1),
        ("set", "Inst-0", "voltage", [4], {}, 2),
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("voltag", r"no method or value 'voltag'; did you mean 'voltage'.* It has: set_voltage"),
        ("serial", r"PowerSupply\.serial \(Inst-0\) is read-only"),
        ("set_voltage", r"set_voltage \(Inst-0\) is a method and cannot be set: call it"),
        ("call", "'call' is a name of this object itself"),
        ("relay_id", "'relay_id' is a name of this object itself"),
        ("state", r"write the driver's value with set\('state', ...\)"),
    ],
)
def test_what_cannot_be_set_says_so_and_nobody_is_asked(
    psu: Any, session: Recorded, name: str, text: str
) -> None:
    with pytest.raises(AttributeError, match=text):
        setattr(psu, name, 1)
    assert session.asked == []


def test_what_cannot_be_read_says_so(psu: Any, session: Recorded) -> None:
    with pytest.raises(AttributeError, match=r"PowerSupply\.pin \(Inst-0\) can only be written"):
        _ = psu.pin
    with pytest.raises(AttributeError, match="no method or value 'curent'"):
        _ = psu.curent
    assert not hasattr(psu, "_repr_svg_")
    with pytest.raises(AttributeError):
        psu._private = 1
    assert session.asked == []


def test_an_error_about_a_large_driver_does_not_list_it_all(
    psu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [ValueInfo(name=f"channel_{number}") for number in range(40)]
    monkeypatch.setattr(
        f"{__name__}.DESCRIPTION",
        Description(id="1", node_id="Inst-0", epoch="e1", driver="Switch", methods=[], values=many),
    )
    with pytest.raises(AttributeError, match=r"did you mean 'channel_7'.* lists the 40 that"):
        _ = psu.chanel_7


def test_the_name_of_a_channel_tells_how_its_values_are_reached(
    psu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = [ValueInfo(name="ch01.voltage", settable=True), ValueInfo(name="ch01.gate")]
    monkeypatch.setattr(
        f"{__name__}.DESCRIPTION",
        Description(id="1", node_id="Inst-0", epoch="e1", driver="Dac", methods=[], values=values),
    )
    reached = r"read them as get\('ch01\.voltage'\), set them as set\('ch01\.voltage', \.\.\.\)"
    with pytest.raises(AttributeError, match=reached):
        psu.ch01.voltage = 1.0
    with pytest.raises(AttributeError, match=reached):
        psu.ch01 = 1.0


def test_looking_at_it_asks_nobody(psu: Any, session: Recorded) -> None:
    assert {"voltage", "serial", "set_voltage", "scan", "get", "batch"} <= set(dir(psu))
    assert "_session" not in dir(psu)
    assert ".voltage: float = 2.4  # V, 0 to 30, settable" in repr(psu)
    assert 'call("watch"), call("status"), get("state")' in repr(psu)
    assert "settable" in psu._repr_html_()
    assert psu.state["voltage"] == 2.4
    assert session.asked == []


def test_a_method_is_called_with_its_arguments(psu: Any, session: Recorded) -> None:
    assert psu.set_voltage(2.5, slew=1) == 2.5
    assert psu.call("status", timeout=3) == 2.5
    assert session.asked == [
        ("call", "Inst-0", "set_voltage", [2.5], {"slew": 1}, None),
        ("call", "Inst-0", "status", [], {}, 3),
    ]
    assert psu.set_voltage.__doc__ == "Units and limits\n    value: V, 0 to 30"


def test_a_method_that_yields_gives_an_iterator_that_has_not_begun(
    psu: Any, session: Recorded
) -> None:
    assert isinstance(psu.scan(0, 1), Stream)
    assert repr(psu.call("watch")) == "<Stream of Inst-0.watch: not begun>"
    assert session.asked == []


def test_two_objects_of_one_relay_are_equal(psu: Any, session: Recorded) -> None:
    again = Instrument(session, "Inst-0")  # type: ignore[arg-type]
    other = Instrument(session, "Inst-1")  # type: ignore[arg-type]
    elsewhere = Instrument(Recorded(), "Inst-0")  # type: ignore[arg-type]
    assert psu == again
    assert {psu: 1}[again] == 1
    assert psu not in (other, elsewhere, "Inst-0")


def test_a_subclass_may_keep_things_of_its_own(session: Recorded) -> None:
    class Supply(Instrument):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self._ohm = 10.0

        def load(self) -> float:
            return float(self.voltage) / self._ohm

    assert Supply(session, "Inst-0").load() == 0.25


# ── batches ─────────────────────────────────────────────────────────────────────────────────────


def test_a_batch_is_written_down_like_calls_and_sent_once(psu: Any, session: Recorded) -> None:
    session.outcomes = [[3.0], [2.9], [None], [2.5], [None], ["ok"]]
    with psu.batch(timeout=5) as b:
        b.set_voltage(3)
        measured = b.voltage
        b.voltage = 4
        again = b.get("voltage")
        b.set("state", "on")
        status = b.call("status", {"full": True})
        assert session.asked == []
        with pytest.raises(RuntimeError, match="has not been sent yet"):
            _ = measured.value
    assert session.asked == [
        (
            "batch",
            "Inst-0",
            [
                ["set_voltage", [3], {}, "call"],
                ["voltage", [], {}, "get"],
                ["voltage", [4], {}, "set"],
                ["voltage", [], {}, "get"],
                ["state", ["on"], {}, "set"],
                ["status", [], {"full": True}, "call"],
            ],
            False,
            5,
        )
    ]
    assert [measured.value, again.value, status.value] == [2.9, 2.5, "ok"]


def test_a_batch_raises_the_first_error_and_keeps_what_came_before(
    psu: Any, session: Recorded
) -> None:
    session.outcomes = [[3.0], ["driver", "too high", {"exception_type": "ValueError"}]]
    with pytest.raises(ValueError, match="too high"), psu.batch() as b:
        first, second, third = b.set_voltage(3), b.set_voltage(99), b.set_voltage(4)
    assert first.value == 3.0
    assert isinstance(second.error, ValueError)
    with pytest.raises(Cancelled, match=r"was not run: set_voltage, before it"):
        _ = third.value


def test_a_batch_whose_block_raised_is_not_sent(psu: Any, session: Recorded) -> None:
    with pytest.raises(ZeroDivisionError), psu.batch() as b:  # noqa: PT012
        pending = b.set_voltage(3)
        _ = 1 / 0
    with pytest.raises(RuntimeError, match="was never sent"):
        _ = pending.value
    with pytest.raises(RuntimeError, match="behind the end of its batch"):
        b.set_voltage(4)
    with psu.batch():
        pass
    assert session.asked == []


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (lambda b: b.set_voltag(1), "did you mean 'set_voltage'"),
        (lambda b: setattr(b, "serial", 1), "is read-only"),
        (lambda b: setattr(b, "set_voltage", 1), "is a method and cannot be set"),
        (lambda b: setattr(b, "set", 1), "is a name of the batch"),
        (lambda b: b.pin, "can only be written"),
    ],
)
def test_what_cannot_be_in_a_batch_says_so_at_once(
    psu: Any, session: Recorded, write: Callable[[Any], object], text: str
) -> None:
    with pytest.raises(AttributeError, match=text), psu.batch() as b:
        write(b)
    assert session.asked == []
