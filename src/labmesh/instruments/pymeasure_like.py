"""Properties that stand for commands of an instrument, as PyMeasure makes them.

``Instrument.control``, ``measurement`` and ``setting`` make properties whose getter and setter have
the commands, the validator and the valid values as defaults of further parameters. They are
recognised by those parameters; PyMeasure itself is not needed.

PyMeasure has no field for a unit. Its docstrings say it in words ("Control the voltage in Volts."),
from which it is taken where exactly one of the units below is named.

A value of a channel has a name with a dot, ``ch_1.voltage``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from types import FunctionType
from typing import Any

from msgspec import Struct

from labmesh.instruments.limits import as_range, choices_of, number
from labmesh.instruments.members import instance_attributes, is_public
from labmesh.protocol.messages import ValueLimits

__all__ = ["CommandProperty", "channels_of", "command_property"]

#: Longer ones are tables of instrument settings, whose first and last are not looked for.
_MOST_VALUES = 10_000
_IN_A_UNIT = re.compile(
    r"\bin\s+(?:units\s+of\s+)?(degrees\s+celsius|[A-Za-z%°Ωµ]+(?:/[A-Za-z]+)?)", re.I
)
_WORDS = {
    "V": "volt volts",
    "A": "amp amps ampere amperes",
    "Ω": "ohm ohms",
    "Hz": "hertz hz",
    "s": "second seconds",
    "W": "watt watts",
    "K": "kelvin",
    "°C": "celsius degrees-celsius",
    "°": "degree degrees",
    "%": "percent",
    "T": "tesla",
    "G": "gauss",
    "F": "farad farads",
    "H": "henry henries",
    "Pa": "pascal pascals",
}
_UNITS = {word.replace("-", " "): unit for unit, words in _WORDS.items() for word in words.split()}
#: Upper and lower case tell these from each other, and from words.
_SYMBOL_LINE = (
    "V A Ω Hz s W K °C ° % T F H Pa mV µV mA µA mW kHz MHz GHz ms µs m cm mm µm nm dB dBm V/s mT "
    "mbar pixels rad"
)
_SYMBOLS = frozenset(_SYMBOL_LINE.split())


class CommandProperty(Struct, frozen=True):
    """What the commands of such a property make of it."""

    gettable: bool
    settable: bool
    limits: ValueLimits


def channels_of(instrument: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """The channels that an instrument holds: (``ch_1.``, channel), those of channels included."""
    for name, held in instance_attributes(instrument).items():
        inside = instance_attributes(held)
        if is_public(name) and inside.get("parent") is instrument and inside.get("_name") == name:
            path = f"{prefix}{name}."
            yield path, held
            yield from channels_of(held, path)


def command_property(name: str, raw: Any, driver: object) -> CommandProperty | None:
    """What its commands say of a property of ``driver``; None: it is another kind of property."""
    reading, writing = _defaults(raw.fget), _defaults(raw.fset)
    if "get_command" not in reading or "set_command" not in writing:
        return None
    # A dynamic property takes what its instrument has under special names instead.
    prefix = getattr(raw, "prefix", None)
    if isinstance(prefix, str):
        special = instance_attributes(driver)
        for settings in (reading, writing):
            for key in settings:
                settings[key] = special.get(f"{prefix}{name}_{key}", settings[key])
    return CommandProperty(
        gettable=reading["get_command"] is not None,
        settable=writing["set_command"] is not None,
        limits=_limits(writing, raw.fget.__doc__),
    )


def _defaults(function: Any) -> dict[str, Any]:
    if not isinstance(function, FunctionType):
        return {}
    parameters = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty}


def _limits(settings: dict[str, Any], doc: object) -> ValueLimits:
    unit = _unit(doc) if isinstance(doc, str) else ""
    values, validator = settings.get("values", ()), settings.get("validator")
    rule = getattr(validator, "__name__", "")
    if not isinstance(values, list | tuple | range | dict | set | frozenset) or not values:
        return ValueLimits(unit=unit)
    if settings.get("map_values") or rule.endswith("_set"):
        return ValueLimits(unit=unit, choices=choices_of(values))
    if rule.endswith("_range") and len(values) <= _MOST_VALUES:
        return _range(list(values), unit)
    return ValueLimits(unit=unit)


def _range(values: list[Any], unit: str) -> ValueLimits:
    numbers = [each for each in map(number, values) if each is not None]
    if len(numbers) < len(values):
        # An end that is infinite, or no number: the others are not the ends of the range either.
        numbers = []
    return as_range(min(numbers, default=None), max(numbers, default=None), unit)


def _unit(doc: str) -> str:
    """The unit that the first paragraph names; empty: none, or more than one."""
    paragraph = doc.strip().partition("\n\n")[0]
    found = {
        word if word in _SYMBOLS else _UNITS.get(" ".join(word.lower().split()), "")
        for word in _IN_A_UNIT.findall(paragraph)
    }
    found.discard("")
    return found.pop() if len(found) == 1 else ""
