"""Each error of labmesh has an exit code and something to try."""

from __future__ import annotations

import pytest

from labmesh import errors
from labmesh.cli.outcomes import EXIT_CODES, OUTCOMES, outcome_of, report
from labmesh.cli.output import Output
from labmesh.errors import LabmeshError, error_from_wire, wire_names

Captured = pytest.CaptureFixture[str]

CODES = {
    "AuthenticationError": 4,
    "BadArguments": 2,
    "Busy": 5,
    "Cancelled": 1,
    "ChecksumMismatch": 7,
    "ConfigError": 2,
    "Conflict": 4,
    "DriverError": 6,
    "Expired": 5,
    "Forbidden": 4,
    "Damaged": 7,
    "InternalError": 1,
    "LabmeshError": 1,
    "LinkLost": 5,
    "Locked": 4,
    "NoAnswer": 5,
    "NoSpace": 1,
    "NotFound": 3,
    "NotSent": 5,
    "OutcomeUnknown": 5,
    "ProtocolError": 2,
    "StaleEpoch": 5,
    "Stopping": 5,
    "StorageError": 1,
    "TooLarge": 4,
    "UnknownMethod": 3,
    "UnsupportedVersion": 4,
}

CLASSES = {
    name: each
    for name, each in vars(errors).items()
    if isinstance(each, type) and issubclass(each, LabmeshError) and name in errors.__all__
}


def test_the_list_here_is_complete() -> None:
    assert set(CODES) == set(CLASSES)
    assert set(CLASSES.values()) == set(wire_names().values())


@pytest.mark.parametrize("name", CODES)
def test_exit_code_and_advice(name: str) -> None:
    outcome = outcome_of(CLASSES[name]("it went wrong"))
    assert outcome.exit_code == CODES[name]
    assert outcome.exit_code in EXIT_CODES
    assert len(outcome.advice) > 10


def test_what_can_be_tried_again_has_the_code_that_says_so() -> None:
    for name, each in CLASSES.items():
        # Not without somebody's doing: the bank's disk has to be cleared, a lease to be given back.
        if each.retryable and name not in ("NoSpace", "Locked"):
            assert CODES[name] == 5, name


def test_every_row_of_the_table_is_of_use() -> None:
    for kind in OUTCOMES:
        assert outcome_of(kind()) == OUTCOMES[kind]


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (FileNotFoundError(2, "No such file", "x"), 3),
        (PermissionError(13, "no"), 4),
        (OSError(5, "io"), 1),
    ],
)
def test_errors_of_files(error: OSError, exit_code: int) -> None:
    assert outcome_of(error).exit_code == exit_code


def test_an_unexpected_error_has_no_outcome() -> None:
    with pytest.raises(KeyError, match="ZeroDivisionError"):
        outcome_of(ZeroDivisionError())


@pytest.mark.parametrize("builtin", ["ValueError", "KeyError", "TimeoutError", "FileNotFoundError"])
def test_a_driver_may_raise_what_it_likes(builtin: str, capsys: Captured) -> None:
    error = error_from_wire(
        "driver",
        "no channel 7",
        {
            "exception_type": builtin,
            "relay_id": "psu-1",
            "method": "read",
            "remote_traceback": "T!",
        },
    )
    assert report(error, Output()) == 6
    assert f"error: psu-1.read raised {builtin}: no channel 7\n" in capsys.readouterr().err
    report(error, Output(), verbose=1)
    assert capsys.readouterr().err.endswith("T!\n")


def test_an_error_of_the_file_system_names_the_file(capsys: Captured) -> None:
    assert report(FileNotFoundError(2, "No such file or directory", "scan.npy"), Output()) == 3
    assert capsys.readouterr().err.startswith("error: scan.npy: No such file or directory\n")


def test_what_others_wrote_does_not_steer_the_terminal(capsys: Captured) -> None:
    report(errors.NotFound("no \x1b[2J here"), Output())
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("SystemExit", "SystemExit: 3", "psu.f raised SystemExit: 3"),
        ("my_lab.Jam", "Jam: the slide is stuck", "psu.f raised my_lab.Jam: the slide is stuck"),
        ("ValueError", "ValueError", "psu.f raised ValueError"),
        ("ValueError", "too hot", "psu.f raised ValueError: too hot"),
    ],
)
def test_the_kind_of_a_drivers_error_is_said_once(
    kind: str, text: str, said: str, capsys: Captured
) -> None:
    detail = {"exception_type": kind, "relay_id": "psu", "method": "f"}
    report(errors.DriverError(text, **detail), Output())
    assert capsys.readouterr().err.splitlines()[0] == f"error: {said}"
