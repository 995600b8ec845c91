"""The tree of errors: as drawn, over the wire and back, and as what a driver raised."""

import builtins
import copy
import pickle
import re
import traceback

import pytest

from labmesh import errors
from labmesh.errors import (
    DriverError,
    LabmeshError,
    NotFound,
    OutcomeUnknown,
    StorageError,
    driver_error,
    error_from_wire,
    wire_names,
)

KINDS = list(wire_names().values())
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)

#: Builtin exceptions that a caller can raise again from a text alone.
MIRRORED = sorted(
    name
    for name, kind in vars(builtins).items()
    if isinstance(kind, type)
    and issubclass(kind, Exception)
    and not issubclass(kind, (StopIteration, StopAsyncIteration, ExceptionGroup, UnicodeError))
    and kind not in (Exception, RuntimeError)
)


def drawn() -> dict[str, tuple[str, str, int, str, str]]:
    """Name of the class → its parent, builtin, code, wire name and whether it ran, as drawn."""
    line = re.compile(r"^    ([│ ├└─]*)(\w+)(?: \((\w+)\))? +(\d{3})  (\w+) *(.*)$", re.MULTILINE)
    tree, parents = {}, ["RuntimeError"]
    for branch, name, builtin, code, wire_name, ran in line.findall(errors.__doc__):
        depth = len(branch) // 4
        del parents[depth + 1 :]
        tree[name] = (parents[-1], builtin, int(code), wire_name, ran)
        parents.append(name)
    return tree


def test_the_tree_is_as_it_is_drawn():
    words = {None: "", False: "not executed", True: "executed"}
    real = {
        kind.__name__: (
            kind.__bases__[0].__name__,
            kind.__bases__[1].__name__ if len(kind.__bases__) > 1 else "",
            kind.code,
            kind.name,
            words[kind.executed],
        )
        for kind in KINDS
    }
    real["LabmeshError"] = ("RuntimeError", "RuntimeError", 500, "error", "")
    assert drawn() == real


def test_every_error_is_exported_and_has_a_name_of_its_own():
    functions = {"error_from_wire", "wire_names"}
    assert set(errors.__all__) - functions == {kind.__name__ for kind in KINDS}
    assert len({kind.name for kind in KINDS}) == len(KINDS)


@every_kind
def test_an_error_is_caught_as_the_builtin_that_it_resembles(kind):
    builtin = drawn()[kind.__name__][1] or "RuntimeError"
    with pytest.raises(getattr(builtins, builtin)):
        raise kind("no answer from Inst-0")


@every_kind
def test_an_error_says_its_text(kind):
    error = kind("no answer from 'Inst-0'", node="Inst-0")
    assert str(error) == "no answer from 'Inst-0'"
    assert error.detail == {"node": "Inst-0"}
    assert str(kind()) == kind.__name__


@every_kind
def test_an_error_crosses_the_wire_by_name_text_and_detail(kind):
    sent = kind("disk full", free=3)
    received = error_from_wire(sent.name, sent.text, sent.detail)
    assert type(received) is kind
    assert (received.text, received.detail) == ("disk full", {"free": 3})
    assert (received.code, received.retryable, received.executed) == (
        kind.code,
        kind.retryable,
        kind.executed,
    )


@every_kind
@pytest.mark.parametrize(
    "again", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy]
)
def test_an_error_is_the_same_after_a_copy(kind, again):
    error = kind("disk full", free=3)
    error.add_note("while storing scan-42")
    same = again(error)
    assert type(same) is kind
    assert (same.text, same.detail) == (error.text, error.detail)
    assert same.__notes__ == ["while storing scan-42"]


def test_a_name_of_a_later_version_is_an_error_all_the_same():
    error = error_from_wire("quantum_decoherence", "too warm", {"kelvin": 4})
    assert type(error) is LabmeshError
    assert (str(error), error.detail) == ("too warm", {"kelvin": 4})


@pytest.mark.parametrize("name", ["not_found", "driver", "unheard_of"])
def test_facts_that_are_no_names_or_would_collide_are_left_out(name):
    hostile = {"self": 1, "text": 2, "a b": 3, "": 4, "class": 5, "__class__": 6, "node": 7}
    error = error_from_wire(name, "gone", hostile)
    assert error.detail == {"class": 5, "__class__": 6, "node": 7}
    assert type(error) is wire_names().get(name, LabmeshError)
    assert error_from_wire(name, "gone").detail == {}


def test_a_missing_key_reads_like_a_sentence():
    assert str(NotFound("no relay 'Inst-9'")) == "no relay 'Inst-9'"


def test_only_what_is_harmless_invites_to_try_again():
    retryable = {kind.__name__ for kind in KINDS if kind.retryable}
    assert retryable == {
        "Busy", "Expired", "LinkLost", "Locked", "NoAnswer", "NoSpace", "NotSent", "StaleEpoch",
        "Stopping",
    }  # fmt: skip
    assert OutcomeUnknown.executed is None


def test_a_lease_of_somebody_else_is_a_refusal_that_says_who_holds_it():
    sent = errors.Locked("psu is leased by ana", holder="ana", note="T sweep", left_s=7.5, fence=3)
    received = error_from_wire(sent.name, sent.text, sent.detail)
    assert isinstance(received, PermissionError)
    assert (received.code, received.executed, received.retryable) == (423, False, True)
    assert received.detail == {"holder": "ana", "note": "T sweep", "left_s": 7.5, "fence": 3}


def test_an_error_of_the_disk_has_no_number():
    assert StorageError("disk full").errno is None


# ── what a driver raised ────────────────────────────────────────────────────────────────────────

FACTS = {
    "remote_traceback": "Traceback (most recent call last):\n  at PSU.set_voltage",
    "relay_id": "Inst-0",
    "method": "set_voltage",
}


def raised_by_driver(exception_type: str) -> DriverError:
    return error_from_wire("driver", "too high", {"exception_type": exception_type, **FACTS})


@pytest.mark.parametrize("name", MIRRORED)
def test_a_builtin_is_caught_as_itself(name):
    error = raised_by_driver(name)
    with pytest.raises(getattr(builtins, name)) as caught:
        raise error
    assert isinstance(caught.value, DriverError)
    assert str(caught.value) == "too high"
    assert (error.exception_type, error.relay_id, error.method) == (name, "Inst-0", "set_voltage")
    assert error.code == 500
    assert error.name == "driver"
    shown = "".join(traceback.format_exception(error))
    assert "too high" in shown
    assert "Traceback on Inst-0" in shown
    assert "at PSU.set_voltage" in shown


def test_common_builtins_are_among_them():
    common = {"KeyError", "ValueError", "ZeroDivisionError", "OSError", "TimeoutError"}
    assert common <= set(MIRRORED)


@pytest.mark.parametrize(
    "name",
    [
        "StopIteration", "StopAsyncIteration", "SystemExit", "KeyboardInterrupt", "GeneratorExit",
        "BaseException", "ExceptionGroup", "BaseExceptionGroup", "UnicodeDecodeError",
        "UnicodeError", "Exception", "RuntimeError", "LabmeshError", "VisaIOError", "eval", "int",
        "__loader__", "__name__", "__build_class__", "", "a.b", "\0", "\ud800", "x" * 100_000,
    ],
)  # fmt: skip
def test_what_steers_a_program_or_is_unknown_is_a_plain_driver_error(name):
    error = raised_by_driver(name)
    assert type(error) is DriverError
    assert error.exception_type == name


def test_names_of_peers_are_not_kept():
    before = len(errors._MIRRORS)
    for number in range(1000):
        raised_by_driver(f"Error{number}")
    assert len(errors._MIRRORS) == before
    assert type(raised_by_driver("KeyError")) is type(raised_by_driver("KeyError"))


@pytest.mark.parametrize("name", ["KeyError", "OSError", "SyntaxError", "VisaIOError"])
@pytest.mark.parametrize("again", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy])
def test_a_driver_error_is_the_same_after_a_copy(name, again):
    error = raised_by_driver(name)
    same = again(error)
    assert type(same) is type(error)
    assert (str(same), same.detail) == ("too high", error.detail)
    assert same.__notes__ == error.__notes__


def test_a_driver_error_without_facts():
    error = driver_error("too high", {})
    assert type(error) is DriverError
    assert (error.exception_type, error.remote_traceback) == ("Exception", "")
    assert not hasattr(error, "__notes__")
    nameless = driver_error("too high", {"remote_traceback": "at PSU"})
    assert nameless.__notes__ == ["Traceback on the relay:\nat PSU"]
