"""The options that commands share, and what they lead to: configuration, broker, security."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter
from msgspec.structs import asdict

from labmesh.cli.output import Output
from labmesh.config import Config, find_config, load_config
from labmesh.discovery import BrokerCandidate, broker_candidate
from labmesh.errors import ConfigError
from labmesh.transport.keys import Security
from labmesh.util import prompt_network_password

__all__ = ["BrokerOptions", "ClientOptions", "MeshOptions", "Options"]

_EVERYWHERE = Group("Options of every command", sort_key=99)
_MESH = Group("The mesh", sort_key=98)

_PATIENCE_S = 5.0
#: Where it is certain by then that no broker is there, it is not waited for any longer.
_CERTAIN_S = 1.2
_WEEK_S = 604_800


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """What every command takes."""

    json: Annotated[
        bool,
        Parameter(
            negative="",
            group=_EVERYWHERE,
            show_default=False,
            help="Print for programs: one JSON object a line on stdout.",
        ),
    ] = False
    verbose: Annotated[
        int,
        Parameter(
            name=["--verbose", "-v"],
            count=True,
            group=_EVERYWHERE,
            show_default=False,
            help="Say more on stderr: -v state changes and remote tracebacks, -vv each message.",
        ),
    ] = 0
    quiet: Annotated[
        bool,
        Parameter(
            name=["--quiet", "-q"],
            negative="",
            group=_EVERYWHERE,
            show_default=False,
            help="Say nothing on stderr but errors.",
        ),
    ] = False

    @cached_property
    def out(self) -> Output:
        """Where this command prints."""
        return Output(json=self.json, quiet=self.quiet)

    def prepare(self) -> None:
        """What must happen before the command runs."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class MeshOptions(Options):
    """What every command takes that has to do with a mesh."""

    config: Annotated[
        Path | None,
        Parameter(
            group=_MESH,
            help="Configuration file. Without it: labmesh.toml of this folder, if there is one.",
        ),
    ] = None
    ask_password: Annotated[
        bool,
        Parameter(
            negative="",
            group=_MESH,
            show_default=False,
            help="Ask for the network password here, instead of LMH_NETWORK_PASSWORD.",
        ),
    ] = False

    def prepare(self) -> None:
        if self.ask_password and prompt_network_password() is None:
            raise ConfigError(
                "--ask-password needs a terminal to ask at; set LMH_NETWORK_PASSWORD instead"
            )

    @cached_property
    def settings(self) -> Config:
        """The configuration file, or the defaults.

        :raises ConfigError: it cannot be used.
        """
        return load_config(self.config or find_config())

    @property
    def security(self) -> Security:
        """How this command's nodes are secured: the environment, then the file."""
        table = self.settings.security
        return Security.resolve(**asdict(table))


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class BrokerOptions(MeshOptions):
    """What every command takes that needs a broker."""

    broker: Annotated[
        str | None,
        Parameter(
            group=_MESH,
            help="The broker: host, host:port or tcp://host:port. Without it: the file of "
            "--config, LMH_BROKER, labmesh.toml of this folder, the network that this computer has "
            "joined, localhost:5750.",
        ),
    ] = None

    @property
    def candidate(self) -> BrokerCandidate:
        """The broker, and who named it."""
        return broker_candidate(self.broker, os.environ, self.config)

    @property
    def patience_s(self) -> float:
        """Seconds to wait for a broker."""
        return _PATIENCE_S

    @property
    def certain_s(self) -> float:
        """Seconds after which no broker is waited for that is certainly not there."""
        return _CERTAIN_S


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ClientOptions(BrokerOptions):
    """What every command takes that asks something of a mesh."""

    timeout: Annotated[
        float | None,
        Parameter(
            group=_MESH,
            help="Seconds to wait for the broker, and then for an answer. Without it: 5 for the "
            "broker, 1 where nobody listens; a call lasts as long as the relay shows that it runs.",
        ),
    ] = None

    def prepare(self) -> None:
        super().prepare()
        if self.timeout is not None and not 0 < self.timeout <= _WEEK_S:
            raise ConfigError(f"--timeout takes seconds, more than 0 and at most {_WEEK_S}")

    @property
    def patience_s(self) -> float:
        return _PATIENCE_S if self.timeout is None else self.timeout

    @property
    def certain_s(self) -> float:
        return _CERTAIN_S if self.timeout is None else self.timeout
