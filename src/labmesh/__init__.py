"""A mesh over ZeroMQ for laboratory instruments."""

from importlib import import_module
from typing import TYPE_CHECKING

from labmesh.version import __version__

if TYPE_CHECKING:
    from labmesh.broker import DirectoryBroker
    from labmesh.client import BankClient, DirectorClientAgent, RelayClient
    from labmesh.databank import DataBank
    from labmesh.instruments.cooperation import cancel_requested
    from labmesh.instruments.handover import publish, publisher, upload, uploader
    from labmesh.instruments.marks import expose, hidden
    from labmesh.mesh import Mesh, connect
    from labmesh.relay import RelayAgent
    from labmesh.testing import demo

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

# Each name is loaded when it is first asked for: a relay has no use for the client, and a command
# that only asks a question none for the broker. That halves the time in which a program starts.
_HOMES = {
    "BankClient": "client",
    "DataBank": "databank",
    "DirectorClientAgent": "client",
    "DirectoryBroker": "broker",
    "Mesh": "mesh",
    "RelayAgent": "relay",
    "RelayClient": "client",
    "cancel_requested": "instruments.cooperation",
    "connect": "mesh",
    "demo": "testing",
    "expose": "instruments.marks",
    "hidden": "instruments.marks",
    "publish": "instruments.handover",
    "publisher": "instruments.handover",
    "upload": "instruments.handover",
    "uploader": "instruments.handover",
}
#: What people reach as ``labmesh.errors.NotFound`` after ``import labmesh``.
_MODULES = frozenset(
    ("broker", "client", "config", "databank", "errors", "instruments", "mesh", "relay", "testing")
)

if not TYPE_CHECKING:  # a checker would take any name for one that is here

    def __getattr__(name: str) -> object:
        if name in _MODULES:
            return import_module(f"labmesh.{name}")
        if name not in _HOMES:
            raise AttributeError(f"module 'labmesh' has no attribute {name!r}")
        value = getattr(import_module(f"labmesh.{_HOMES[name]}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *_HOMES, *_MODULES})
