"""A mesh over ZeroMQ for laboratory instruments."""

from labmesh.broker import DirectoryBroker
from labmesh.client import BankClient, DirectorClientAgent, RelayClient
from labmesh.databank import DataBank
from labmesh.instruments.cooperation import cancel_requested
from labmesh.instruments.handover import publish, publisher, upload, uploader
from labmesh.instruments.marks import expose, hidden
from labmesh.mesh import Mesh, connect
from labmesh.relay import RelayAgent
from labmesh.testing import demo
from labmesh.version import __version__

__all__ = [
    "BankClient",
    "DataBank",
    "DirectorClientAgent",
    "DirectoryBroker",
    "Mesh",
    "RelayAgent",
    "RelayClient",
    "__version__",
    "cancel_requested",
    "connect",
    "demo",
    "expose",
    "hidden",
    "publish",
    "publisher",
    "upload",
    "uploader",
]
