"""What is wrong with a name that a driver does not have, or not in this way; nobody is asked."""

from __future__ import annotations

from labmesh.blocking.methods import Driver
from labmesh.errors import UnknownMethod
from labmesh.protocol.ids import did_you_mean

__all__ = ["check_gettable", "check_settable", "unknown"]

#: Up to so many names an error lists all of them.
_FEW = 12


def unknown(driver: Driver, relay_id: str, name: str) -> UnknownMethod:
    """The error for a name that is neither a method nor a value."""
    of_channel = next((each for each in driver.values if each.startswith(f"{name}.")), None)
    if of_channel is not None:
        return UnknownMethod(
            f"{name!r} of {driver.name} ({relay_id}) is a part with values of its own: read them "
            f"as get({of_channel!r}), set them as set({of_channel!r}, ...)"
        )
    of_channel = next((each for each in driver.methods if each.startswith(f"{name}.")), None)
    if of_channel is not None:
        return UnknownMethod(
            f"{name!r} of {driver.name} ({relay_id}) is a part with methods of its own: call them "
            f"as call({of_channel!r}, ...)"
        )
    near = did_you_mean(name, driver.names)
    text = (
        f"{driver.name} ({relay_id}) has no method or value {name!r}{f'; {near}' if near else '.'} "
    )
    if len(driver.names) > _FEW:
        return UnknownMethod(f"{text}TAB, or dir(), lists the {len(driver.names)} that it has")
    return UnknownMethod(f"{text}It has: {', '.join(driver.names) or 'none'}")


def check_gettable(driver: Driver, relay_id: str, name: str) -> None:
    """:raises AttributeError: it is no value, or one that can only be written."""
    if name not in driver.values:
        raise unknown(driver, relay_id, name)
    if not driver.values[name].gettable:
        raise UnknownMethod(
            f"{driver.name}.{name} ({relay_id}) can only be written: set it, do not read it"
        )


def check_settable(driver: Driver, relay_id: str, name: str) -> None:
    """:raises AttributeError: it is no value, or one that can only be read."""
    place = f"{driver.name}.{name} ({relay_id})"
    if name in driver.methods:
        raise AttributeError(f"{place} is a method and cannot be set: call it, {name}(...)")
    if name not in driver.values:
        raise unknown(driver, relay_id, name)
    if not driver.values[name].settable:
        raise AttributeError(f"{place} is read-only: its driver has no way to set it")
