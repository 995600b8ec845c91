"""The blocking facade on a real mesh: instruments, banks, news, and its end."""

from __future__ import annotations

import asyncio
import gc
import inspect
import io
import os
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.promptness import SLACK_S
from tests.support.served import ServedMesh, eventually

import labmesh
from labmesh.errors import (
    AuthenticationError,
    BadArguments,
    Conflict,
    DriverError,
    LinkLost,
    NoAnswer,
    NotFound,
    NotSent,
    UnknownMethod,
)
from labmesh.instruments.simulated import PowerSupply
from labmesh.mesh import DriverChangedWarning, Instrument, Mesh
from labmesh.testing import Held, ScriptedInstrument
from labmesh.transport.keys import Security


class Echo:
    """A driver that gives back what it gets."""

    def echo(self, value: Any = None, *, unit: str = "V") -> list[Any]:
        """Give back the value and the unit.

        Nothing moves.
        """
        return [value, unit]

    def fail(self) -> None:
        """Raise an error."""
        raise ValueError("no such channel")


@contextmanager
def blocked(
    proxy: Instrument, instrument: ScriptedInstrument, released: threading.Event
) -> Iterator[None]:
    """Another thread calls ``block()``, which lasts until the end of this."""
    thread = threading.Thread(target=proxy.block)
    thread.start()
    try:
        instrument.calls.wait_for(1, "block")
        yield
    finally:
        released.set()
        thread.join()


@pytest.fixture
def served() -> Iterator[ServedMesh]:
    drivers = {"Inst-0": PowerSupply(noise=0.0, seed=1), "echo-0": Echo()}
    with ServedMesh(drivers) as mesh:
        yield mesh


@pytest.fixture
def mesh(served: ServedMesh) -> Mesh:
    return served.connect()


# ── calls ───────────────────────────────────────────────────────────────────────────────────────


def test_a_method_is_called_like_the_drivers_own(mesh: Mesh) -> None:
    psu = mesh["Inst-0"]
    assert psu.set_voltage(2.5) == 2.5
    assert psu.set_voltage(value=3) == 3.0
    assert mesh["echo-0"].echo(1, unit="A") == [1, "A"]


@pytest.mark.parametrize(
    ("params", "got"),
    [
        (None, [None, "V"]),
        ({}, [None, "V"]),
        ({"value": 1, "unit": "A"}, [1, "A"]),
        ([[1, 2]], [[1, 2], "V"]),
        (False, [False, "V"]),
        ("", ["", "V"]),
    ],
)
def test_a_call_by_name_takes_parameters_of_each_form(mesh: Mesh, params: Any, got: Any) -> None:
    assert mesh["echo-0"].call("echo", params) == got


def test_an_array_comes_back_as_one(mesh: Mesh) -> None:
    value, _ = mesh["echo-0"].echo(np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(value, np.arange(6.0).reshape(2, 3))


def test_errors_keep_their_class_and_are_readable(mesh: Mesh) -> None:
    echo = mesh["echo-0"]
    with pytest.raises(ValueError, match="no such channel") as caught:
        echo.fail()
    assert isinstance(caught.value, DriverError)
    assert caught.value.relay_id == "echo-0"
    assert "Traceback on echo-0" in "".join(traceback.format_exception(caught.value))
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert frames[0].name == "test_errors_keep_their_class_and_are_readable"
    assert "link.py" not in {Path(each.filename).name for each in frames}
    with pytest.raises(BadArguments, match="has no parameter") as wrong:
        echo.echo(valeu=1)
    assert isinstance(wrong.value, TypeError)
    with pytest.raises(UnknownMethod):
        echo.call("ecko")


def test_a_timeout_is_a_hard_deadline(served: ServedMesh, mesh: Mesh) -> None:
    released = threading.Event()
    slow = ScriptedInstrument(block=Held(released), move="moved")
    served.do(served.local.start_relay("slow", slow))
    proxy = mesh["slow"]
    with blocked(proxy, slow, released), pytest.raises(NoAnswer):
        proxy.call("move", timeout=0.2)
    assert proxy.move() == "moved"
    assert len(slow.calls.of("move")) == 1


# ── the proxy ───────────────────────────────────────────────────────────────────────────────────


def test_methods_show_the_drivers_signature_and_docstring(mesh: Mesh) -> None:
    echo = mesh["echo-0"].echo
    assert str(inspect.signature(echo)) == "(value: Any = None, *, unit: str = 'V') -> list[Any]"
    assert echo.__name__ == "echo"
    assert inspect.getdoc(echo) == "Give back the value and the unit.\n\nNothing moves."
    assert {"set_voltage", "measure", "call", "watch"} <= set(dir(mesh["Inst-0"]))


def test_an_unknown_attribute_is_an_error_that_needs_no_network(mesh: Mesh) -> None:
    psu = mesh["Inst-0"]
    mesh.close()
    with pytest.raises(AttributeError, match=r"has no method or value 'set_voltag'; did you mean"):
        psu.set_voltag(1)
    assert not hasattr(psu, "_repr_svg_")
    with pytest.raises(NotSent, match="closed"):
        psu.set_voltage(1)


def test_assigning_to_what_is_no_value_is_an_error_and_sets_nothing(mesh: Mesh) -> None:
    psu = mesh["Inst-0"]
    for name in ("voltag", "set_voltage", "call"):
        with pytest.raises(AttributeError, match=name):
            setattr(psu, name, 3)
    assert psu.measure()["mode"] == "off"


def test_two_objects_of_one_instrument_are_equal(served: ServedMesh, mesh: Mesh) -> None:
    assert mesh["Inst-0"] == mesh["Inst-0"]
    assert len({mesh["Inst-0"], mesh["Inst-0"], mesh["echo-0"]}) == 2
    assert mesh["Inst-0"] != served.connect()["Inst-0"]


def test_an_instrument_may_be_of_a_class_of_ones_own(mesh: Mesh) -> None:
    class Supply(Instrument):
        def off(self) -> None:
            self.set_output(False)

    psu = mesh.instrument("Inst-0", Supply)
    psu.set_output(True)
    psu.off()
    assert psu.measure()["mode"] == "off"


def test_driver_methods_under_the_proxys_own_names_are_reached_by_call(
    served: ServedMesh, mesh: Mesh
) -> None:
    served.do(served.local.start_relay("clash", ScriptedInstrument(status="the driver's", on=1)))
    clash = mesh["clash"]
    assert clash.call("status") == "the driver's"
    assert clash.status().driver == "ScriptedInstrument"
    assert 'call("status")' in repr(clash)
    assert ".status(" not in repr(clash)


def test_the_card_and_the_table_need_no_network(served: ServedMesh, mesh: Mesh) -> None:
    psu = mesh["Inst-0"]
    psu.set_voltage(2.5)
    mesh.close()
    assert repr(mesh).endswith("closed")
    card = repr(psu)
    assert card.startswith("Inst-0: PowerSupply")
    assert "(mesh closed)" in card
    assert ".set_voltage(value: float) -> float" in card
    assert "voltage=" in card
    assert "set_voltage" in psu._repr_html_()
    assert "closed" in mesh._repr_html_()


def test_the_description_is_there_whole(mesh: Mesh) -> None:
    assert [each.name for each in mesh["echo-0"].describe().methods] == ["echo", "fail"]


# ── states ──────────────────────────────────────────────────────────────────────────────────────


def test_the_last_state_is_there_without_waiting(mesh: Mesh) -> None:
    state = mesh["Inst-0"].state
    assert state is not None
    assert state["mode"] == "off"
    assert state.age_s < 60
    assert state.interval_s == 0.1
    assert mesh["echo-0"].state is None


def test_states_are_watched_one_after_the_other(mesh: Mesh) -> None:
    psu = mesh["Inst-0"]
    psu.set_voltage(7.0)
    got = []
    for reading in psu.watch(timeout=10):
        got.append(reading)
        if reading["set_voltage"] == 7.0 and len(got) >= 3:
            break
    assert {each.relay_id for each in got} == {"Inst-0"}
    assert [each.missed for each in got] == [0] * len(got)
    assert sorted(each.sequence for each in got) == [each.sequence for each in got]


def test_several_relays_are_watched_by_a_pattern(served: ServedMesh, mesh: Mesh) -> None:
    served.do(served.local.start_relay("Inst-1", PowerSupply()))
    served.do(served.local.start_relay("other", PowerSupply()))
    seen = set()
    with mesh.watch("Inst-*", timeout=10) as readings:
        for reading in readings:
            seen.add(reading.relay_id)
            if len(seen) == 2:
                break
    assert seen == {"Inst-0", "Inst-1"}


def test_a_relay_that_publishes_nothing_times_out(mesh: Mesh) -> None:
    with pytest.raises(NoAnswer, match="no state of echo-0"):
        next(mesh["echo-0"].watch(timeout=0.1))
    with pytest.raises(ValueError, match="timeout"):
        mesh["echo-0"].watch(timeout=0)
    with pytest.raises(ValueError, match="pattern"):
        mesh.watch("no such thing")


def test_watching_ends_when_the_mesh_is_closed(served: ServedMesh) -> None:
    mesh = served.connect()
    readings = mesh["echo-0"].watch()
    ended = threading.Event()

    def read() -> None:
        assert list(readings) == []
        ended.set()

    thread = threading.Thread(target=read)
    thread.start()
    mesh.close()
    assert ended.wait(10)
    thread.join()


# ── status ──────────────────────────────────────────────────────────────────────────────────────


def test_the_status_of_an_idle_instrument(mesh: Mesh) -> None:
    psu = mesh["Inst-0"]
    next(psu.watch(timeout=10))
    status = psu.status()
    assert (status.up, status.registered, status.driver) == (True, True, "PowerSupply")
    assert (status.busy_with, status.queued, status.state_error) == (None, 0, "")
    assert status.link_age_s is not None
    assert status.link_age_s < 5
    assert not status.stale
    text = repr(status)
    for part in ("link        up", "relay       registered", "driver      idle", "last good state"):
        assert part in text


def test_the_status_of_a_busy_one_and_of_one_without_poll(served: ServedMesh, mesh: Mesh) -> None:
    released = threading.Event()
    slow = ScriptedInstrument(block=Held(released))
    served.do(served.local.start_relay("slow", slow))
    proxy = mesh["slow"]
    with blocked(proxy, slow, released):
        status = proxy.status()
    assert status.busy_with == "block"
    assert status.busy_s is not None
    assert "busy with block for" in repr(status)
    assert "no poll()" in repr(status)


def test_the_status_of_an_instrument_that_does_not_answer_its_driver(
    served: ServedMesh, mesh: Mesh
) -> None:
    broken = ScriptedInstrument(poll=lambda: OSError("no answer from COM3"))
    relay = served.local.start_relay("broken", broken, state_interval=0.01)
    served.do(relay)
    proxy = mesh["broken"]
    eventually(lambda: proxy.status().stale, "the status is stale")
    status = proxy.status()
    assert "no answer from COM3" in status.state_error
    assert "STALE (one is due each 0.01 s)" in repr(status)
    assert "poll() FAILED: OSError: no answer from COM3" in repr(status)


def test_the_status_of_a_relay_that_is_gone_says_so(served: ServedMesh, mesh: Mesh) -> None:
    psu = mesh["Inst-0"]
    psu.status()
    served.do(served.local.relays["Inst-0"].stop())
    eventually(lambda: "Inst-0" not in mesh, "the relay has left")
    status = psu.status()
    assert not status.up
    assert "DOWN, last message" in repr(status)
    assert "(gone)" in repr(psu)


def test_the_status_of_the_mesh(mesh: Mesh) -> None:
    status = mesh.status()
    assert (status.relays, status.banks, status.security) == (2, 1, "open")
    assert "2 relays, 1 bank" in repr(status)


# ── who is there ────────────────────────────────────────────────────────────────────────────────


def test_a_mesh_is_a_collection_of_relays(mesh: Mesh) -> None:
    assert mesh.relays == list(mesh) == ["Inst-0", "echo-0"]
    assert mesh._ipython_key_completions_() == mesh.relays
    assert mesh.banks == ["bank-0"]
    assert len(mesh) == 2
    assert mesh
    assert "Inst-0" in mesh
    assert "bank-0" not in mesh
    assert repr(mesh).splitlines()[1].split()[:3] == ["id", "kind", "state"]
    assert [line.split()[0] for line in repr(mesh).splitlines()[2:]] == [
        "Inst-0",
        "echo-0",
        "bank-0",
    ]
    assert "<table>" in mesh._repr_html_()


def test_an_unknown_name_tells_the_closest_one(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labmesh.blocking.session._JOIN_S", 0.05)
    monkeypatch.setattr("labmesh.mesh._BANK_S", 0.05)
    with pytest.raises(KeyError, match="did you mean 'Inst-0'") as caught:
        mesh["Inst-1"]
    assert isinstance(caught.value, NotFound)
    with pytest.raises(KeyError, match="bank-0"):
        mesh.bank("bank-1")
    with pytest.raises(TypeError, match="id is text"):
        mesh[0]  # type: ignore[index]


def test_a_relay_that_is_just_joining_is_waited_for(served: ServedMesh, mesh: Mesh) -> None:
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(mesh["late"].echo(1)))
    thread.start()
    served.do(served.local.start_relay("late", Echo()))
    thread.join()
    assert got == [[1, "V"]]


def test_presence_keeps_the_list_fresh_and_callbacks_are_called(
    served: ServedMesh, mesh: Mesh
) -> None:
    heard: list[tuple[str, str, bool]] = []
    changed = threading.Event()

    def note(change: dict[str, Any]) -> None:
        heard.append((change["node_id"], change["change"], change["node_id"] in mesh))
        changed.set()

    subscription = mesh.on_presence(note)
    served.do(served.local.start_relay("late", Echo()))
    assert changed.wait(10)
    changed.clear()
    served.do(served.local.relays["late"].stop())
    assert changed.wait(10)
    subscription.cancel()
    eventually(lambda: subscription.ended, "the subscription has ended")
    assert heard == [("late", "joined", True), ("late", "left", False)]


def test_after_a_restart_of_the_broker_the_list_is_right(served: ServedMesh, mesh: Mesh) -> None:
    served.do(served.local.broker.stop())
    eventually(lambda: "NO LINK to the broker" in repr(mesh), "the mesh notices")
    assert mesh["Inst-0"].set_voltage(1.0) == 1.0
    served.do(served.local.relays["echo-0"].stop())
    served.do(served.local.restart_broker())
    eventually(lambda: "NO LINK to the broker" not in repr(mesh), "the mesh has it again")
    eventually(lambda: mesh.relays == ["Inst-0"], "only the relay that lives is listed")


def test_a_blocking_call_in_a_callback_is_refused_and_no_deadlock(
    served: ServedMesh, mesh: Mesh
) -> None:
    psu = mesh["Inst-0"]
    errors: list[BaseException] = []
    called = threading.Event()

    def call(_change: dict[str, Any]) -> None:
        try:
            psu.set_voltage(1)
        except RuntimeError as exc:
            errors.append(exc)
        called.set()

    mesh.on_presence(call)
    served.do(served.local.start_relay("late", Echo()))
    assert called.wait(10)
    assert "another thread" in str(errors[0])


# ── several threads, restarts, other loops ──────────────────────────────────────────────────────


def test_threads_share_a_proxy(mesh: Mesh) -> None:
    echo = mesh["echo-0"]
    wrong: list[Any] = []

    def ask(number: int) -> None:
        for turn in range(25):
            value = [number, turn]
            if echo.echo(value) != [value, "V"]:
                wrong.append(value)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert wrong == []


def test_a_restarted_relay_heals_silently(served: ServedMesh, mesh: Mesh) -> None:
    psu = mesh["Inst-0"]
    assert psu.set_voltage(1.0) == 1.0
    method = psu.set_voltage
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            served.do(served.local.restart_relay("Inst-0"))
            assert psu.set_voltage(2.0) == 2.0
            assert method(3.0) == 3.0


def test_a_changed_driver_warns_once_and_shows_the_new_methods(
    served: ServedMesh, mesh: Mesh
) -> None:
    psu, again = mesh["Inst-0"], mesh["Inst-0"]
    epoch = served.local.relays["Inst-0"].epoch
    served.do(served.local.restart_relay("Inst-0", Echo()))
    known = mesh._session.client.known
    eventually(lambda: (at := known("Inst-0")) and at.epoch != epoch, "the news has arrived")
    with pytest.warns(DriverChangedWarning, match="the driver is Echo, it was") as caught:
        assert psu.echo(1) == [1, "V"]
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert "gone: measure" in str(caught[0].message)
    assert again.echo(2) == [2, "V"]
    with pytest.raises(AttributeError):
        psu.set_voltage(1)


async def test_it_works_where_a_loop_runs_already(served: ServedMesh) -> None:
    """As in a notebook: the call holds up that loop, and nothing else."""
    mesh = served.connect()
    psu = mesh["Inst-0"]
    assert asyncio.get_running_loop().is_running()
    assert psu.set_voltage(2.0) == 2.0
    assert next(psu.watch(timeout=10)).relay_id == "Inst-0"
    mesh.close()


# ── datasets ────────────────────────────────────────────────────────────────────────────────────


def test_what_is_put_comes_back_as_it_was(mesh: Mesh, tmp_path: Path) -> None:
    file = tmp_path / "in.bin"
    file.write_bytes(b"from a file")
    bank = mesh.bank()
    for value, kind, back in (
        (b"bytes", "bytes", b"bytes"),
        ("text, µ", "text", "text, µ"),
        ({"a": [1, 2.5]}, "json", {"a": [1, 2.5]}),
        ([1, 2], "json", [1, 2]),
        (file, "bytes", b"from a file"),
        (io.BytesIO(b"open file"), "bytes", b"open file"),
        (iter([b"in ", b"pieces"]), "bytes", b"in pieces"),
    ):
        record = bank.put(value, f"a {kind}")
        assert record.kind == kind
        assert record.read() == bank.read(record.dataset_id) == back


def test_an_array_is_stored_as_one_and_its_record_tells_all(mesh: Mesh, tmp_path: Path) -> None:
    array = np.linspace(0, 1, 1000)
    steps: list[tuple[int, int | None]] = []
    before = datetime.now(UTC)
    record = mesh.put(
        array, "scan-42", meta={"sample": "A1"}, progress=lambda *step: steps.append(step)
    )
    np.testing.assert_array_equal(record.read(), array)
    assert (record.name, record.kind, record.bank_id) == ("scan-42", "npy", "bank-0")
    assert record.meta == {"sample": "A1"}
    assert (record.size, len(record.sha256)) == (8128, 64)
    assert abs((record.created - before).total_seconds()) < 60
    assert steps[-1] == (8128, 8128)
    assert "'scan-42'  npy  8.13 kB" in repr(record)
    assert "sample=&#x27;A1&#x27;" in record._repr_html_()
    saved = record.save(tmp_path / "scan.npy")
    np.testing.assert_array_equal(np.load(saved), array)
    assert record.save(tmp_path).name == record.dataset_id


def test_datasets_are_listed_the_newest_first(mesh: Mesh) -> None:
    bank = mesh.bank("bank-0")
    for number in range(5):
        bank.put(b"%d" % number, f"number {number}", dataset_id=f"set-{number}")
    assert [each.dataset_id for each in bank.list(limit=2)] == ["set-4", "set-3"]
    assert [each.sequence for each in bank.list(newest_first=False)] == [1, 2, 3, 4, 5]
    assert bank["set-2"] == bank.get("set-2")
    assert bank.status().facts["datasets"] == 5
    assert repr(bank).startswith("bank bank-0 (live): memory")
    with pytest.raises(KeyError, match="no dataset set-9"):
        bank["set-9"]
    with pytest.raises(Conflict):
        bank.put(b"other", dataset_id="set-1")
    with pytest.raises(ValueError, match="limit"):
        bank.list(limit=0)
    assert [each.dataset_id for each in bank] == [f"set-{number}" for number in (4, 3, 2, 1, 0)]
    assert "set-3" in bank
    assert bank["set-3"] in bank
    assert "set-9" not in bank
    assert 3 not in bank
    assert "set-4" in bank._ipython_key_completions_()


def test_a_dataset_is_announced(mesh: Mesh) -> None:
    heard: list[dict[str, Any]] = []
    came = threading.Event()
    mesh.on_dataset(lambda record: (heard.append(record), came.set()))
    record = mesh.put(b"news")
    assert came.wait(10)
    assert heard[0]["dataset_id"] == record.dataset_id


# ── its end ─────────────────────────────────────────────────────────────────────────────────────


def test_closing_twice_is_fine_and_a_closed_mesh_refuses(served: ServedMesh) -> None:
    with served.connect() as mesh:
        assert not mesh.closed
    mesh.close()
    assert mesh.closed
    with pytest.raises(NotSent, match="this mesh is closed; connect again"):
        mesh.status()
    with pytest.raises(NotSent):
        mesh["nobody"]
    with pytest.raises(NotSent, match="closed"):
        mesh["Inst-0"]


def test_closing_ends_a_call_that_waits(served: ServedMesh) -> None:
    mesh = served.connect()
    released = threading.Event()
    slow = ScriptedInstrument(block=Held(released))
    served.do(served.local.start_relay("slow", slow))
    errors: list[BaseException] = []

    def call() -> None:
        try:
            mesh["slow"].block()
        except LinkLost as exc:
            errors.append(exc)

    thread = threading.Thread(target=call)
    thread.start()
    slow.calls.wait_for(1, "block")
    mesh.close()
    thread.join()
    released.set()
    assert "outcome is unknown" in str(errors[0])


def test_a_mesh_that_is_forgotten_ends_with_the_last_object_that_uses_it(
    served: ServedMesh,
) -> None:
    def background() -> list[threading.Thread]:
        return [each for each in threading.enumerate() if each.name == "labmesh"]

    readings = labmesh.connect(served.local.address)["Inst-0"].watch(timeout=10)
    gc.collect()
    assert next(readings).relay_id == "Inst-0"
    assert len(background()) == 1
    del readings
    gc.collect()
    eventually(lambda: not background(), "the thread has ended")


# ── which broker ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without a labmesh.toml, and no variables."""
    for name in list(os.environ):
        if name.startswith("LMH_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_broker_is_taken_from_the_variable(
    served: ServedMesh, nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMH_BROKER", served.local.address.removeprefix("tcp://"))
    with labmesh.connect() as mesh:
        assert "Inst-0" in mesh


@pytest.mark.parametrize("event_port", [True, False])
def test_the_broker_is_taken_from_the_file_and_so_are_limits(
    served: ServedMesh, nowhere: Path, event_port: bool
) -> None:
    broker = served.local.broker
    lines = ["[client]", f'broker_rpc = "tcp://BROKER:{broker.rpc.port}"', "call_limit = 7.5"]
    if event_port:
        lines.append(f'broker_xpub = "tcp://BROKER:{broker.xpub.port}"')
    (nowhere / "labmesh.toml").write_text("\n".join(lines))
    with labmesh.connect() as mesh:
        assert mesh._session.client.call_limit == 7.5
        assert "Inst-0" in mesh
    other = nowhere / "other.toml"
    (nowhere / "labmesh.toml").rename(other)
    with labmesh.connect(config=other) as mesh:
        assert "Inst-0" in mesh


def test_without_a_broker_the_error_says_what_was_tried_and_why(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConnectionError) as caught:
        labmesh.connect("127.0.0.1:9", timeout=0.3)
    assert isinstance(caught.value, LinkLost)
    assert "labmesh broker" in str(caught.value)
    assert "(Tried tcp://127.0.0.1:9, from the argument.)" in str(caught.value)
    monkeypatch.setenv("LMH_BROKER", "127.0.0.1:9")
    with pytest.raises(LinkLost, match=r"Tried tcp://127\.0\.0\.1:9, from LMH_BROKER"):
        labmesh.connect(timeout=0.3)
    monkeypatch.setenv("LMH_BROKER", "no host:1")
    with pytest.raises(ValueError, match="LMH_BROKER"):
        labmesh.connect()


def test_a_wrong_password_is_told_within_two_seconds(nowhere: Path) -> None:
    right = Security.resolve(environ={"LMH_NETWORK_PASSWORD": "correct horse"})
    wrong = Security.resolve(environ={"LMH_NETWORK_PASSWORD": "battery staple"})
    with ServedMesh({"Inst-0": PowerSupply()}, security=right) as served:
        assert served.connect(security=right)["Inst-0"].set_voltage(1) == 1.0
        for security in (wrong, Security.resolve(environ={})):
            with pytest.raises(AuthenticationError, match="password"):
                served.connect(security=security, timeout=2.0 + SLACK_S)


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_timeout_that_is_none_is_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout must be more than 0 seconds"):
        labmesh.connect(timeout=timeout)
