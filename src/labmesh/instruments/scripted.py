"""A driver double that answers from a script and records how it was called."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, overload

__all__ = ["After", "Held", "RecordedCall", "RecordedCalls", "ScriptedInstrument"]

#: A test that forgets to release a driver must end all the same.
_HELD_S = 60.0


@dataclass(frozen=True)
class After:
    """An answer that takes ``seconds``, slept by the instrument's ``sleep``."""

    seconds: float
    answer: Any = None


@dataclass(frozen=True)
class Held:
    """An answer that the driver gives when ``released`` is set, and not before.

    A driver that is not released within 60 s raises a TimeoutError.
    """

    released: threading.Event
    answer: Any = None


class RecordedCall(NamedTuple):
    """One call as the driver got it; ``time`` is of the instrument's clock, at its beginning."""

    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    time: float


class RecordedCalls(Sequence[RecordedCall]):
    """The calls of a scripted instrument, in the order in which they began. In any thread."""

    def __init__(self) -> None:
        self._calls: list[RecordedCall] = []
        self._more = threading.Condition()

    def record(self, call: RecordedCall) -> None:
        """Append a call."""
        with self._more:
            self._calls.append(call)
            self._more.notify_all()

    def of(self, method: str) -> list[RecordedCall]:
        """The calls of one method."""
        return [each for each in list(self._calls) if each.method == method]

    def wait_for(self, count: int, method: str | None = None, *, timeout: float = 10.0) -> None:
        """Wait until so many calls (of this method) have begun. It blocks its thread.

        :raises TimeoutError: they have not, within ``timeout`` seconds.
        """

        def enough() -> bool:
            calls = self._calls if method is None else self.of(method)
            return len(calls) >= count

        with self._more:
            if not self._more.wait_for(enough, timeout):
                raise TimeoutError(
                    f"{count} calls{f' of {method}' if method else ''} were expected within "
                    f"{timeout:g} s; these came: {[each.method for each in self._calls]}"
                )

    def __len__(self) -> int:
        return len(self._calls)

    @overload
    def __getitem__(self, index: int) -> RecordedCall: ...

    @overload
    def __getitem__(self, index: slice) -> list[RecordedCall]: ...

    def __getitem__(self, index: int | slice) -> RecordedCall | list[RecordedCall]:
        return self._calls[index]

    def __repr__(self) -> str:
        return f"RecordedCalls({self._calls!r})"


class ScriptedInstrument:
    """A driver whose methods and answers are given: ``ScriptedInstrument(read=[1.5, OSError()])``.

    Each keyword is a method, which takes any arguments. What it is given says what it answers:

    - a list: these answers, one a call, in order; a call behind the last one is a LookupError;
    - a function: what it returns for the arguments of the call;
    - anything else: this answer, each time.

    An answer that is an exception (or an exception class) is raised; :class:`After` takes time, and
    :class:`Held` waits until the test releases it. ``calls`` records every call with its time.

    :param clock: seconds, never going back.
    :param sleep: waits for a number of seconds.
    """

    calls: RecordedCalls

    def __new__(
        cls,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        **script: Any,
    ) -> Self:
        # A relay reads the methods from the class, so each instrument has a class of its own.
        methods = {name: _scripted(name) for name in script}
        made = type(cls.__name__, (cls,), {"__module__": cls.__module__, **methods})
        return object.__new__(made)

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        **script: Any,
    ) -> None:
        self.calls = RecordedCalls()
        self._clock = clock
        self._sleep = sleep
        self._answers: dict[str, Callable[..., Any]] = {
            name: _answers(name, answers) for name, answers in script.items()
        }

    def __getattr__(self, name: str) -> Any:
        # It is here for type checkers, which cannot see the methods of the script.
        if name.startswith("_"):
            raise AttributeError(name)
        raise AttributeError(
            f"the script has no method {name!r}; it has {', '.join(self._answers)}"
        )

    def _perform(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.calls.record(RecordedCall(name, args, kwargs, self._clock()))
        answer = self._answers[name](*args, **kwargs)
        while isinstance(answer, After | Held):
            if isinstance(answer, After):
                self._sleep(answer.seconds)
            elif not answer.released.wait(_HELD_S):
                raise TimeoutError(f"{name}() was not released within {_HELD_S:g} s")
            answer = answer.answer
        if _is_error(answer):
            raise answer
        return answer


def _scripted(name: str) -> Callable[..., Any]:
    def method(self: ScriptedInstrument, *args: Any, **kwargs: Any) -> Any:
        return self._perform(name, args, kwargs)

    method.__name__ = method.__qualname__ = name
    method.__doc__ = "Answers from its script."
    return method


def _answers(name: str, script: Any) -> Callable[..., Any]:
    if isinstance(script, list):
        return _in_order(name, script)
    if callable(script) and not _is_error(script):
        answers: Callable[..., Any] = script
        return answers
    return lambda *_args, **_kwargs: script


def _in_order(name: str, script: list[Any]) -> Callable[..., Any]:
    rest = iter(script)
    behind = LookupError(
        f"the script of {name}() has {len(script)} answers; this was one more call"
    )
    return lambda *_args, **_kwargs: next(rest, behind)


def _is_error(answer: Any) -> bool:
    kind = answer if isinstance(answer, type) else type(answer)
    return issubclass(kind, BaseException)
