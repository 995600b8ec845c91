"""An instrument of PyMeasure, served by a relay. Its properties are values that anyone can read.

The instrument is SIMULATED: SwissArmyFake, which PyMeasure ships for its own tests. What it
measures is made up. Try it (``pip install "labmesh[pymeasure]"``) while ``labmesh broker`` runs:

    python pymeasure_instrument.py

or by the command line, which needs no file at all:

    labmesh relay pymeasure.instruments.fakes:SwissArmyFake --id fake-1 --kwarg wait=0.01

or as a table of labmesh.toml, for ``labmesh up``:

    [[relays]]
    id = "fake-1"
    driver = "pymeasure.instruments.fakes:SwissArmyFake"
    kwargs = { wait = 0.01 }

Then, anywhere on the network:

    fake = labmesh.connect()["fake-1"]
    fake.output_voltage = 2.5
    fake.output_voltage
    fake.frame                       # a numpy array

For an instrument of your own put its class and what it is made with, such as its VISA name.
"""

from __future__ import annotations

import argparse
import asyncio

from pymeasure.instruments.fakes import SwissArmyFake

from labmesh import RelayAgent


def main() -> None:
    """Serve one simulated instrument, until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Serve a simulated instrument of PyMeasure.")
    parser.add_argument("--id", default="fake-1", help="id on the network")
    parser.add_argument("--broker-rpc", default="tcp://localhost:5750")
    parser.add_argument("--broker-xsub", default="tcp://localhost:5751")
    options = parser.parse_args()
    relay = RelayAgent(
        options.id,
        SwissArmyFake(wait=0.01),
        broker_rpc=options.broker_rpc,
        state_pub=options.broker_xsub,
    )
    asyncio.run(relay.run())


if __name__ == "__main__":
    main()
