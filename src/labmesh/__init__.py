"""A mesh over ZeroMQ for laboratory instruments."""

from labmesh.broker import DirectoryBroker
from labmesh.client import BankClient, DirectorClientAgent, RelayClient
from labmesh.databank import DataBank
from labmesh.relay import RelayAgent

__version__ = "0.1.0"

__all__ = [
    "BankClient",
    "DataBank",
    "DirectorClientAgent",
    "DirectoryBroker",
    "RelayAgent",
    "RelayClient",
    "__version__",
]
