"""An oscilloscope behind PyVISA, served by a relay.

The class below is an ordinary PyVISA driver: it knows nothing of the network. Try it with the
simulated instrument of this folder (no instrument needed; ``pip install pyvisa pyvisa-sim numpy``)
while ``labmesh broker`` runs:

    python visa_oscilloscope.py TCPIP::scope.lab::INSTR --visa simulated_oscilloscope.yaml@sim

and with a real one (without ``--visa`` by the VISA library of this computer; ``@py`` is pyvisa-py):

    python visa_oscilloscope.py USB::0x0699::0x0368::C012345::INSTR

The same by the command line, from this folder:

    labmesh relay visa_oscilloscope:Oscilloscope --id scope-1 \\
        --arg TCPIP::scope.lab::INSTR --kwarg visa=simulated_oscilloscope.yaml@sim

or as a table of labmesh.toml, for ``labmesh up``:

    [[relays]]
    id = "scope-1"
    driver = "visa_oscilloscope:Oscilloscope"
    args = ["TCPIP::scope.lab::INSTR"]
    kwargs = { visa = "simulated_oscilloscope.yaml@sim", timeout_s = 2.0 }

Then, anywhere on the network:

    scope = labmesh.connect()["scope-1"]
    scope.set_timebase(5e-4)
    volts = scope.waveform(1)        # a numpy array

The commands are those of ``simulated_oscilloscope.yaml``; for another instrument, put in its own.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyvisa
from pyvisa.resources import MessageBasedResource

from labmesh import RelayAgent


class Oscilloscope:
    """A two-channel oscilloscope.

    The session is opened by the first command, so that the relay can be started before the
    instrument is switched on. After a VISA error it is closed: the next command opens a new one, in
    which no late answer can be taken for the answer to another question.

    :param resource: its VISA resource name.
    :param visa: the VISA library, as ``pyvisa.ResourceManager`` takes it.
    :param timeout_s: seconds that the instrument may take for an answer.
    """

    def __init__(self, resource: str, visa: str = "", timeout_s: float = 2.0) -> None:
        self._resource = resource
        self._timeout_s = timeout_s
        self._manager = pyvisa.ResourceManager(visa)
        self._session: MessageBasedResource | None = None

    # ── settings ────────────────────────────────────────────────────────────────────────────────

    def identity(self) -> str:
        """Maker, model, serial number, firmware."""
        return self.query("*IDN?")

    def query(self, command: str) -> str:
        """Send any SCPI query; its answer as text."""
        with self._instrument() as scope:
            return scope.query(command)

    def timebase(self) -> float:
        """Seconds per division."""
        return float(self.query("TIM:SCAL?"))

    def set_timebase(self, seconds: float) -> float:
        """Set the seconds per division; what the instrument made of it."""
        self._write(f"TIM:SCAL {seconds:.6E}")
        return self.timebase()

    def scale(self, channel: int) -> float:
        """Volts per division of channel 1 or 2."""
        return float(self.query(f"CHAN{_checked(channel)}:SCAL?"))

    def set_scale(self, channel: int, volts: float) -> float:
        """Set the volts per division of channel 1 or 2; what the instrument made of it."""
        self._write(f"CHAN{_checked(channel)}:SCAL {volts:.6E}")
        return self.scale(channel)

    def run(self) -> None:
        """Acquire."""
        self._write("ACQ:STATE 1")

    def stop(self) -> None:
        """Stop acquiring; the last waveform stays."""
        self._write("ACQ:STATE 0")

    # ── waveforms ───────────────────────────────────────────────────────────────────────────────

    def waveform(self, channel: int = 1) -> np.ndarray:
        """The waveform in volts, sent as text."""
        with self._instrument() as scope:
            return scope.query_ascii_values(f"WAV{_checked(channel)}:ASC?", container=np.array)

    def waveform_codes(self, channel: int = 1) -> np.ndarray:
        """The waveform as the converter's codes, one byte a point, sent as a binary block."""
        with self._instrument() as scope:
            return scope.query_binary_values(
                f"WAV{_checked(channel)}:BYTE?", datatype="B", container=np.array
            )

    def preamble(self, channel: int = 1) -> dict[str, float]:
        """How codes become volts: ``(code - zero) * volts_per_code``; and the time axis."""
        with self._instrument() as scope:
            points, seconds, volts, zero = scope.query_ascii_values(f"WAV{_checked(channel)}:PRE?")
        return {
            "points": int(points),
            "seconds_per_point": seconds,
            "volts_per_code": volts,
            "zero": zero,
        }

    # ── state ───────────────────────────────────────────────────────────────────────────────────

    def poll(self) -> dict[str, Any]:
        """What is published at each state interval."""
        return {
            "running": self.query("ACQ:STATE?") == "1",
            "timebase_s": self.timebase(),
            "scale_v": [self.scale(1), self.scale(2)],
        }

    # ── VISA ────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _instrument(self) -> Iterator[MessageBasedResource]:
        if self._session is None:
            self._session = self._open()
        try:
            yield self._session
        except pyvisa.VisaIOError:
            session, self._session = self._session, None
            session.close()
            raise

    def _open(self) -> MessageBasedResource:
        try:
            session = self._manager.open_resource(self._resource)
        except pyvisa.VisaIOError as exc:
            raise ConnectionError(f"{self._resource} cannot be opened: {exc}") from exc
        if not isinstance(session, MessageBasedResource):
            raise ConnectionError(f"{self._resource} is not the name of an instrument")
        session.timeout = self._timeout_s * 1000
        session.read_termination = session.write_termination = "\n"
        try:
            if session.query("*IDN?"):
                return session
        except pyvisa.VisaIOError:
            session.close()
            raise
        session.close()
        found = ", ".join(self._manager.list_resources()) or "nothing"
        raise ConnectionError(f"nobody answers at {self._resource}; VISA finds {found}")

    def _write(self, command: str) -> None:
        """Send a command, and raise what the instrument has to say against it."""
        with self._instrument() as scope:
            scope.write(command)
            error = scope.query("SYST:ERR?")
        if not error.startswith(("0,", "+0,")):
            raise ValueError(f"{command}: the instrument says {error}")


def _checked(channel: int) -> int:
    if channel not in (1, 2):
        raise ValueError(f"channel {channel!r}: this oscilloscope has channels 1 and 2")
    return channel


def main() -> None:
    """Serve one oscilloscope, until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Serve a VISA oscilloscope on a labmesh network.")
    parser.add_argument("resource", help="VISA resource name, like TCPIP::scope.lab::INSTR")
    parser.add_argument("--visa", default="", help="VISA library; like @py, or file.yaml@sim")
    parser.add_argument("--timeout", type=float, default=2.0, help="seconds an answer may take")
    parser.add_argument("--id", default="scope-1", help="id on the network")
    parser.add_argument("--broker-rpc", default="tcp://localhost:5750")
    parser.add_argument("--broker-xsub", default="tcp://localhost:5751")
    options = parser.parse_args()
    scope = Oscilloscope(options.resource, options.visa, options.timeout)
    relay = RelayAgent(
        options.id, scope, broker_rpc=options.broker_rpc, state_pub=options.broker_xsub
    )
    asyncio.run(relay.run())


if __name__ == "__main__":
    main()
