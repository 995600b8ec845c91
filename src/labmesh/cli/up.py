"""``labmesh up``: a whole mesh in one terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from msgspec.structs import replace

from labmesh.broker import DirectoryBroker
from labmesh.cli import assembly
from labmesh.cli.options import MeshOptions
from labmesh.cli.running import hold
from labmesh.cli.started import announce, bank_facts, broker_facts, option_for, relay_facts
from labmesh.config import BankTable, Config, RelayEntry, find_config, from_options
from labmesh.databank import DataBank
from labmesh.errors import ConfigError
from labmesh.node import Node
from labmesh.relay import RelayAgent
from labmesh.transport.keys import Security

__all__ = ["LocalMesh", "up"]

_OPTIONS = MeshOptions()


def up(
    file: Annotated[
        Path | None,
        Parameter(help="Configuration file. Without it: labmesh.toml of this folder, if any."),
    ] = None,
    /,
    *,
    free_ports: Annotated[
        bool,
        Parameter(negative="", show_default=False, help="Take free ports, whatever the file says."),
    ] = False,
    data_dir: Annotated[
        str | None, Parameter(help="Folder of the datasets ([bank] default_data_dir).")
    ] = None,
    options: MeshOptions = _OPTIONS,
) -> int:
    """Run a whole mesh in this terminal, until Ctrl-C: broker, bank, the [[relays]] of the file.

    Without a file the instruments are simulated. An error in the file, in a driver, or a port that
    is taken ends it before anything is ready; a relay that fails later is reported, and the others
    go on.

    For example:

        labmesh up
        labmesh up lab/labmesh.toml
        labmesh up --free-ports --json
    """
    if file is not None:
        options = dataclasses.replace(options, config=file)
    config = options.settings
    folder = {"default_data_dir": data_dir}
    config = replace(config, bank=from_options(BankTable, folder, config.bank))
    is_simulated = options.config is None and find_config() is None
    if is_simulated:
        config = assembly.simulated(config)
    if free_ports:
        config = assembly.free_ports(config)
    wrong = assembly.mismatches(config)
    if wrong:
        raise ConfigError(f"{config.path}: {wrong[0]}")
    mesh = LocalMesh(config, options.security)

    def ready() -> None:
        if is_simulated:
            options.out.say("There is no labmesh.toml here: these instruments are simulated.")
            options.out.say("('labmesh init' writes a file to put your own into.)")
        announce(options.out, mesh.facts(), mesh.next_commands(), simulated=is_simulated)

    return hold(mesh.factories, ready, options.out, config)


class LocalMesh:
    """Broker, bank and relays of one file, for one process.

    :raises ConfigError: a driver cannot be made; nothing was started.
    """

    def __init__(self, config: Config, security: Security) -> None:
        self._config = config
        self._security = security
        # Before any node: a driver that cannot be made is said before anything runs.
        self._drivers = [assembly.load_entry(entry) for entry in config.relays]
        self.broker = assembly.make_broker(config, security)
        self.banks: list[DataBank] = []
        self.relays: list[tuple[RelayEntry, RelayAgent]] = []

    @property
    def factories(self) -> list[Callable[[], Node]]:
        """Make the nodes, the broker first; call each when those before it have been started."""
        return [
            self._make_broker,
            self._make_bank,
            *(
                partial(self._make_relay, entry, driver)
                for entry, driver in zip(self._config.relays, self._drivers, strict=True)
            ),
        ]

    def facts(self) -> dict[str, object]:
        """Who is where."""
        return {
            "broker": broker_facts(self.broker, self._config),
            "banks": [bank_facts(each, self._config) for each in self.banks],
            "relays": [relay_facts(node, entry) for entry, node in self.relays],
        }

    def next_commands(self) -> list[str]:
        """What a user can type now."""
        place = option_for(self._config, self.broker)
        commands = [f"labmesh ls{place}", f"labmesh watch{place}"]
        for entry, _ in self.relays[:1]:
            is_supply = entry.driver == "labmesh.instruments.simulated:PowerSupply"
            do = f"call {entry.id} set_voltage value=2.5" if is_supply else f"show {entry.id}"
            commands.insert(1, f"labmesh {do}{place}")
        return [*commands, f"labmesh data put FILE{place}"]

    def _make_broker(self) -> DirectoryBroker:
        return self.broker

    def _make_bank(self) -> DataBank:
        node = assembly.make_bank(assembly.beside(self._config, self.broker), self._security)
        self.banks.append(node)
        return node

    def _make_relay(self, entry: RelayEntry, driver: object) -> RelayAgent:
        config = assembly.beside(self._config, self.broker)
        node = assembly.make_relay(config, entry, driver, self._security)
        self.relays.append((entry, node))
        return node
