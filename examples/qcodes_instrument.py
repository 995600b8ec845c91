"""An instrument of QCoDeS, served by a relay. Its parameters are values that anyone can read.

The instrument is SIMULATED: MockDAC, which QCoDeS ships for its own tests; its channels keep what
they are given. Try it (``pip install "labmesh[qcodes]"``) while ``labmesh broker`` runs:

    python qcodes_instrument.py

or by the command line, which needs no file at all:

    labmesh relay qcodes.instrument_drivers.mock_instruments:MockDAC --id dac-1 \\
        --arg dac --kwarg num_channels=2

or as a table of labmesh.toml, for ``labmesh up``:

    [[relays]]
    id = "dac-1"
    driver = "qcodes.instrument_drivers.mock_instruments:MockDAC"
    args = ["dac"]
    kwargs = { num_channels = 2 }

Then, anywhere on the network:

    dac = labmesh.connect()["dac-1"]
    dac.set("ch01.voltage", 1.5)     # the parameter "voltage" of the channel "ch01"
    dac.get("ch01.voltage")

For an instrument of your own put its class and what it is made with, such as its VISA name.
"""

from __future__ import annotations

import argparse
import asyncio

from qcodes.instrument_drivers.mock_instruments import MockDAC

from labmesh import RelayAgent


def main() -> None:
    """Serve one simulated instrument, until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Serve a simulated instrument of QCoDeS.")
    parser.add_argument("--id", default="dac-1", help="id on the network")
    parser.add_argument("--broker-rpc", default="tcp://localhost:5750")
    parser.add_argument("--broker-xsub", default="tcp://localhost:5751")
    options = parser.parse_args()
    relay = RelayAgent(
        options.id,
        MockDAC("dac", num_channels=2),
        broker_rpc=options.broker_rpc,
        state_pub=options.broker_xsub,
    )
    asyncio.run(relay.run())


if __name__ == "__main__":
    main()
