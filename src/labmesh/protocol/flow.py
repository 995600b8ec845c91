"""The flow of a stream's items: whoever takes them says how many more may come."""

from __future__ import annotations

from labmesh.errors import ProtocolError

__all__ = ["Inflow"]


class Inflow:
    """The taking side: no gap, no repeat, and never more than ``credit`` items that wait.

    :param credit: items that may be under way or waiting, at least 1.
    """

    def __init__(self, credit: int) -> None:
        self._credit = credit
        self._expected = 0
        self._allowed = credit
        self._taken = 0

    def arrived(self, index: int) -> None:
        """An item has come in.

        :raises ProtocolError: it is not the next one, or it was not asked for.
        """
        if index != self._expected:
            raise ProtocolError(
                f"item {index} of a stream came where item {self._expected} is the next: the "
                "stream was ended"
            )
        if self._expected == self._allowed:
            raise ProtocolError(
                f"item {index} of a stream came, and only {self._allowed} were asked for: the "
                "stream was ended"
            )
        self._expected += 1

    def taken(self) -> int:
        """One item was taken; how many more are to be asked for now (0: none yet).

        Half of the credit at a time: fewer messages, and there is always something under way.
        """
        self._taken += 1
        room = self._taken + self._credit - self._allowed
        if 2 * room < self._credit:
            return 0
        self._allowed += room
        return room
