"""Several hosts on one machine: network namespaces at one switch. Needs root, and Linux.

::

    with Lab(["broker", "relay", "client"]) as lab:
        lab["broker"].start([program("nodes.py"), ...], cwd=folder)
        print(lab["broker"].address)          # 10.231.0.1
        lab["client"].run("ping", "-c1", lab["broker"].address)

Each lab has a switch of its own and no way out of it, so that labs do not see each other, nor the
network of this machine, though their addresses are the same.
"""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import pytest
from tests.support.processes import Process

_NETWORK = "10.231.0"
_LIMIT_S = 20.0


class Host:
    """One host of a lab.

    :param name: its namespace.
    :param short_name: what the lab calls it.
    :param address: its address at the switch.
    """

    def __init__(self, name: str, short_name: str, address: str, processes: ExitStack) -> None:
        self.name, self.short_name = name, short_name
        self.address = address
        self._processes = processes

    @property
    def prefix(self) -> list[str]:
        """What to put before a command to have it run on this host."""
        return ["ip", "netns", "exec", self.name]

    def run(self, *command: str) -> str:
        """Run a command that ends well; its output."""
        return _run(*self.prefix, *command)

    def cut_off(self, address: str) -> None:
        """What this host sends to an address is lost; what comes from there arrives."""
        self.run("ip", "route", "add", "blackhole", address)

    def let_through(self, address: str) -> None:
        """The end of :meth:`cut_off`."""
        self.run("ip", "route", "delete", "blackhole", address)

    def has_nothing_to_send(self) -> bool:
        """No connection, also none that was closed here, holds what was not acknowledged."""
        # State, bytes received and not read, bytes sent and not acknowledged, the two ends.
        rows = (line.split() for line in self.run("ss", "-Htn").splitlines())
        return all(row[2] == "0" for row in rows)

    def start(
        self,
        arguments: Sequence[str | os.PathLike[str]],
        *,
        cwd: str | os.PathLike[str],
        environ: Mapping[str, str] | None = None,
    ) -> Process:
        """Start a Python program (arguments as of :class:`Process`); it ends with the lab."""
        process = _ProcessOnHost(self, arguments, cwd=cwd, environ=environ)
        return self._processes.enter_context(process)

    def type(
        self, line: str, *, cwd: str | os.PathLike[str], environ: Mapping[str, str]
    ) -> Process:
        """Start a line of shell, which is one command, on a machine that is called as this host is.

        Both its outputs come as one, in order.
        """
        script = f"hostname {self.short_name} && exec 2>&1 && exec {line}"
        words = ["unshare", "--uts", "sh", "-c", script]
        process = _ProcessOnHost(self, words, cwd=cwd, environ=environ, is_python=False)
        return self._processes.enter_context(process)


class Lab:
    """Hosts at one switch; a context manager.

    Entering it skips the test where namespaces cannot be made; leaving it ends what runs on the
    hosts, then removes them.

    :param hosts: their names.
    """

    def __init__(self, hosts: Sequence[str]) -> None:
        self._names = list(hosts)
        self._hosts: dict[str, Host] = {}

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def __enter__(self) -> Self:
        _skip_without_namespaces()
        with ExitStack() as stack:
            lab = f"labmesh-{os.getpid()}-{secrets.token_hex(3)}"
            switch = _namespace(f"{lab}-switch", stack)
            _run("ip", "-n", switch, "link", "add", "switch", "type", "bridge")
            _run("ip", "-n", switch, "link", "set", "switch", "up")
            processes = ExitStack()
            for number, name in zip(itertools.count(1), self._names, strict=False):
                namespace = _namespace(f"{lab}-{name}", stack)
                host = Host(namespace, name, f"{_NETWORK}.{number}", processes)
                _plug_in(host, switch, port=f"port{number}")
                self._hosts[name] = host
            stack.callback(processes.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class _ProcessOnHost(Process):
    def __init__(
        self,
        host: Host,
        arguments: Sequence[str | os.PathLike[str]],
        *,
        is_python: bool = True,
        **options: object,
    ) -> None:
        super().__init__(arguments, **options)  # type: ignore[arg-type]
        if not is_python:
            self._command = self._command[1:]
        # "ip netns exec" becomes the program itself: pid and signals are the program's.
        self._command = [*host.prefix, *self._command]


def _namespace(name: str, stack: ExitStack) -> str:
    _run("ip", "netns", "add", name)
    stack.callback(_run, "ip", "netns", "delete", name)
    _run("ip", "-n", name, "link", "set", "lo", "up")
    return name


def _plug_in(host: Host, switch: str, *, port: str) -> None:
    # Both ends are made where they belong: the machine's own network never sees them.
    peer = ["peer", "name", port, "netns", switch]
    _run("ip", "-n", host.name, "link", "add", "eth0", "type", "veth", *peer)
    _run("ip", "-n", switch, "link", "set", port, "master", "switch", "up")
    _run("ip", "-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
    _run("ip", "-n", host.name, "link", "set", "eth0", "up")


def _skip_without_namespaces() -> None:
    if not shutil.which("ip") or not Path("/proc/self/ns/net").exists():
        pytest.skip("hosts of their own need network namespaces (Linux, with iproute2)")
    if os.geteuid() != 0:
        pytest.skip("hosts of their own (network namespaces) need root")
    probe = f"labmesh-{os.getpid()}-{secrets.token_hex(3)}"
    try:
        _run("ip", "netns", "add", probe)
        _run("ip", "netns", "delete", probe)
    except RuntimeError as exc:
        pytest.skip(f"hosts of their own (network namespaces) cannot be made here: {exc}")


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    return done.stdout
