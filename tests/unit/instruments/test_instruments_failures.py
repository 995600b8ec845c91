"""What a driver raised, as an error for its caller."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from labmesh.errors import Busy, DriverError
from labmesh.instruments.failures import driver_failure, unsendable_result


def failure_of(method: Callable[[], Any]) -> DriverError:
    """The error for the caller of a method that raises."""
    try:
        method()
    except BaseException as exc:  # a driver may raise anything
        return driver_failure(exc, method="measure", relay_id="Inst-0")
    raise AssertionError("nothing was raised")


def raising(exc: BaseException) -> Callable[[], None]:
    def measure() -> None:
        raise exc

    return measure


class VisaTimeout(Exception):
    pass


class Mute(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


class Hidden(Exception):
    @property
    def __cause__(self) -> BaseException:  # type: ignore[override]
        raise SystemExit


def test_a_builtin_exception_is_mirrored_with_its_message() -> None:
    error = failure_of(raising(ValueError("31 V is too high")))
    assert isinstance(error, ValueError)
    assert str(error) == "31 V is too high"
    assert error.exception_type == "ValueError"
    assert (error.method, error.relay_id, error.executed) == ("measure", "Inst-0", True)


@pytest.mark.parametrize(
    ("exc", "text", "exception_type"),
    [
        (ValueError(), "ValueError", "ValueError"),
        (VisaTimeout("no reply"), "VisaTimeout: no reply", f"{__name__}.VisaTimeout"),
        (VisaTimeout(), "VisaTimeout", f"{__name__}.VisaTimeout"),
        (SystemExit(3), "SystemExit: 3", "SystemExit"),
        (KeyboardInterrupt(), "KeyboardInterrupt", "KeyboardInterrupt"),
        (GeneratorExit(), "GeneratorExit", "GeneratorExit"),
        (asyncio.CancelledError(), "CancelledError", "asyncio.exceptions.CancelledError"),
        (MemoryError(), "MemoryError", "MemoryError"),
        (OSError(5, "gone"), "[Errno 5] gone", "OSError"),
        (Busy("the other relay is busy"), "Busy: the other relay is busy", "labmesh.errors.Busy"),
    ],
)
def test_every_exception_tells_its_type_and_message(
    exc: BaseException, text: str, exception_type: str
) -> None:
    error = failure_of(raising(exc))
    assert str(error) == text
    assert error.exception_type == exception_type
    assert error.executed is True


def test_what_ends_a_program_is_never_mirrored() -> None:
    for exc in (SystemExit(1), KeyboardInterrupt(), GeneratorExit(), StopIteration(1)):
        error = failure_of(raising(exc))
        assert type(error) is DriverError


def test_an_exception_whose_text_raises_is_survived() -> None:
    error = failure_of(raising(Mute()))
    assert str(error) == "Mute: (its message cannot be shown: __str__ raised KeyboardInterrupt)"


def test_an_exception_whose_attributes_raise_is_survived() -> None:
    error = failure_of(raising(Hidden("x")))
    assert str(error) == "Hidden: x"
    assert error.remote_traceback == "(the traceback cannot be shown: SystemExit)"


@pytest.mark.parametrize("character", ["x", "é", "\U0001f50c", "\ud800"])
def test_messages_are_short_and_can_be_encoded(character: str) -> None:
    error = failure_of(raising(ValueError(character * 100_000)))
    assert 1900 < len(str(error).encode()) <= 2000
    assert len(error.remote_traceback.encode()) <= 16 * 1024
    short = failure_of(raising(ValueError(f"<{character}>")))
    assert str(short).encode().startswith(b"<")
    assert str(short).endswith(">")


def test_the_traceback_shows_the_driver_and_not_its_caller() -> None:
    def query() -> None:
        raise OSError("no answer")

    def measure() -> None:
        try:
            query()
        except OSError as exc:
            raise VisaTimeout("gave up") from exc

    text = failure_of(measure).remote_traceback
    assert "in query" in text
    assert "in measure" in text
    assert "direct cause" in text
    assert text.endswith("VisaTimeout: gave up")
    assert "labmesh/instruments" not in text


def test_a_recursion_is_shown_from_its_inner_end() -> None:
    def sink() -> None:
        sink()

    error = failure_of(sink)
    assert isinstance(error, RecursionError)
    assert error.remote_traceback.count("in sink") < 60
    assert "RecursionError" in error.remote_traceback


def test_a_long_traceback_keeps_its_end() -> None:
    def measure() -> None:
        try:
            raise ValueError("first " + "x" * 20_000)
        except ValueError:
            raise VisaTimeout("last") from None

    def outer() -> None:
        try:
            raise ValueError("first " + "x" * 20_000)
        except ValueError:
            measure()

    text = failure_of(outer).remote_traceback
    assert text.startswith("Traceback")
    assert text.endswith("VisaTimeout: last")

    def chained() -> None:
        try:
            raise ValueError("first " + "x" * 20_000)
        except ValueError as exc:
            raise VisaTimeout("last") from exc

    text = failure_of(chained).remote_traceback
    assert text.startswith("…")
    assert text.endswith("VisaTimeout: last")
    assert len(text.encode()) <= 16 * 1024


def test_an_exception_without_frames_of_the_driver_still_has_its_line() -> None:
    error = driver_failure(ValueError("x"), method="m", relay_id="r")
    assert error.remote_traceback == "ValueError: x"


def test_a_result_that_cannot_be_sent_did_run() -> None:
    error = unsendable_result(
        TypeError("set is not supported"), {1}, method="channels", relay_id="Inst-0"
    )
    assert type(error) is DriverError
    assert error.executed is True
    assert str(error) == ("channels ran, but its result (set) cannot be sent: set is not supported")
    unnamed = unsendable_result(RecursionError(), [], method="m", relay_id="r")
    assert str(unnamed).endswith("cannot be sent: RecursionError")
