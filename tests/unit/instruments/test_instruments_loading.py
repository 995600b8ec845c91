"""``module:Class`` → driver object, and one line for each way in which it can fail."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from labmesh.errors import ConfigError
from labmesh.instruments.loading import load_driver
from labmesh.instruments.simulated import PowerSupply

DRIVER = """
class Supply:
    limit = 30
    def __init__(self, port, *, baud=9600):
        if baud < 0:
            raise ValueError("baud is negative:\\n  try 9600")
        self.port, self.baud = port, baud

    @classmethod
    def default(cls):
        return cls("COM1")

def exiting():
    raise SystemExit(2)

def silent():
    raise RuntimeError
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a driver module in it, forgotten afterwards."""
    (tmp_path / "bench_driver.py").write_text(DRIVER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def refusal(spec: str, *args: object, **kwargs: object) -> str:
    """What a user reads: one line."""
    with pytest.raises(ConfigError) as caught:
        load_driver(spec, args, kwargs)
    text = str(caught.value)
    assert "\n" not in text
    assert caught.value.detail == {"driver": spec}
    return text


def test_a_driver_of_an_installed_package_is_made() -> None:
    driver = load_driver("labmesh.instruments.simulated:PowerSupply", kwargs={"max_voltage": 12})
    assert isinstance(driver, PowerSupply)
    with pytest.raises(ValueError, match="outside 0 to 12 V"):
        driver.set_voltage(13)


def test_a_driver_of_the_current_folder_is_made(folder: Path) -> None:
    driver = load_driver("bench_driver:Supply", ["/dev/ttyUSB0"], {"baud": 115200})
    assert vars(driver) == {"port": "/dev/ttyUSB0", "baud": 115200}
    assert sys.path[0] == str(folder)
    load_driver("bench_driver:Supply", ["COM1"])
    assert sys.path.count(str(folder)) == 1


def test_anything_behind_the_colon_that_can_be_called_will_do(folder: Path) -> None:
    assert vars(load_driver("bench_driver:Supply.default"))["port"] == "COM1"


@pytest.mark.parametrize("spec", ["labmesh.sim.PowerSupply", "bench_driver:", ":Supply", "", ":"])
def test_a_driver_is_written_module_colon_class(spec: str) -> None:
    text = refusal(spec)
    assert f"driver {spec!r} is not module:Class" in text
    assert "labmesh.instruments.simulated:PowerSupply" in text


def test_a_module_that_is_not_there_is_named_with_the_folder(folder: Path) -> None:
    text = refusal("bench_drivver:Supply")
    assert f"no module 'bench_drivver' in {folder}" in text
    assert "start labmesh in the folder that holds it, or install it" in text
    assert "no module 'missing_package'" in refusal("missing_package.psu:Supply")


@pytest.mark.parametrize("spec", ["bench_driver.py:Supply", "drivers/psu:Supply"])
def test_a_path_in_place_of_a_module_is_explained(folder: Path, spec: str) -> None:
    assert "write a module's name (folder.file), not the path of a file" in refusal(spec)


def test_a_module_that_needs_another_one_says_which(folder: Path) -> None:
    (folder / "needy.py").write_text("import not_installed_anywhere.part\n")
    text = refusal("needy:Supply")
    assert "needy needs the module 'not_installed_anywhere'" in text
    assert sys.executable in text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("def broken(:\n", "importing broken raised SyntaxError: "),
        ("1 / 0\n", "importing broken raised ZeroDivisionError: division by zero"),
        ("raise SystemExit(1)\n", "importing broken raised SystemExit: 1"),
        ("raise ModuleNotFoundError\n", "importing broken raised ModuleNotFoundError"),
        ("from os import nothing\n", "importing broken raised ImportError: cannot import name"),
    ],
)
def test_a_module_that_cannot_be_imported_says_why(folder: Path, source: str, text: str) -> None:
    (folder / "broken.py").write_text(source)
    assert text in refusal("broken:Supply")


def test_a_class_that_is_not_there_comes_with_the_closest_names(folder: Path) -> None:
    assert "bench_driver has no 'Suply'; did you mean Supply?" in refusal("bench_driver:Suply")
    assert "Supply has no 'defolt'; did you mean default?" in refusal("bench_driver:Supply.defolt")
    assert "bench_driver has no 'zzz'; write it like labmesh." in refusal("bench_driver:zzz")


def test_what_cannot_be_called_is_no_class(folder: Path) -> None:
    text = refusal("bench_driver:Supply.limit")
    assert "Supply.limit is a int, which cannot be called; name a class" in text


def test_a_constructor_that_raises_is_shown_with_its_arguments(folder: Path) -> None:
    text = refusal("bench_driver:Supply", "COM1", baud=-1)
    assert text == (
        "driver 'bench_driver:Supply': Supply('COM1', baud=-1) raised "
        "ValueError: baud is negative: try 9600"
    )
    assert "raised TypeError: " in refusal("bench_driver:Supply")
    assert "Supply() raised" in refusal("bench_driver:Supply")
    assert "…" in refusal("bench_driver:Supply", "x" * 1000, baud=-1)
    assert "exiting() raised SystemExit: 2" in refusal("bench_driver:exiting")
    assert refusal("bench_driver:silent").endswith("silent() raised RuntimeError")
