"""The command line: ``labmesh --help``."""

from labmesh.cli.app import main

__all__ = ["main"]
